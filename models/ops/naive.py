"""The equations of Translution, line by line: the definition that every other operator is tested by.

It forms all N² weights and values, so it serves tiny grids only. Indices: batch b, query i, key j,
head h, width e. Source: arXiv 2510.10060, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_pair(f_BNC: Tensor, W: Tensor, entry_NN: Tensor, token: str) -> Tensor:
    """f_i·W_δ (token "i") or f_j·W_δ (token "j") for every pair → [B, N, N, D].

    W is a bank [K, C, D], read at entry[i, j], or one matrix [C, D] shared by all pairs.
    """
    if W.dim() == 2:
        W = W.expand(1, *W.shape)
        entry_NN = torch.zeros_like(entry_NN)
    return torch.einsum(f"b{token}c,ijcd->bijd", f_BNC, W[entry_NN.clamp_min(0)])


def softmax_weights(a_BNNH: Tensor, entry_NN: Tensor) -> Tensor:
    """Softmax over the keys that exist."""
    return a_BNNH.masked_fill((entry_NN < 0)[None, :, :, None], -torch.inf).softmax(2)


def translution(f: Tensor, Wq: Tensor, Wk: Tensor, Wv: Tensor, entry: Tensor, heads: int) -> Tensor:
    """f [B, N, C] → [B, N, D]; a_ij = ⟨q_ij, k_ij⟩ / √E, out_i = Σ_j α_ij v_ij."""
    q, k, v = (
        per_pair(f, W, entry, token).unflatten(-1, (heads, -1))
        for W, token in ((Wq, "i"), (Wk, "j"), (Wv, "j"))
    )
    a = (q * k).sum(-1) / q.shape[-1] ** 0.5
    return torch.einsum("bijh,bijhe->bihe", softmax_weights(a, entry), v).flatten(2)
