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


def alpha_translution(
    dense: tuple[Tensor, Tensor, Tensor],
    narrow: tuple[Tensor | None, Tensor | None, Tensor | None],
    banks: tuple[Tensor | None, Tensor | None, Tensor | None],
    entry: Tensor,
    heads: int,
    scale: float,
) -> list[Tensor]:
    """α-Translution's two outputs before they are joined (section 3.3): [B, N, D] and, with v', [B, N, H·R].

    a_ij = scale · (⟨q_i, k_j⟩ + ⟨q'_ij, k'_ij⟩), out_i = Σ_j α_ij v_j, out'_i = Σ_j α_ij v'_ij. dense are
    q, k, v [B, N, D]; narrow q', k', v' [B, N, H·R], times their bank [K, H·R, H·R] if they have one.
    """
    q, k, v = (row.unflatten(-1, (heads, -1)) for row in dense)
    narrow_q, narrow_k, narrow_v = (
        None
        if row is None
        else per_pair(
            row, torch.eye(row.shape[-1]).to(row) if bank is None else bank, entry, token
        ).unflatten(-1, (heads, -1))
        for row, bank, token in zip(narrow, banks, "ijj", strict=True)
    )
    a = torch.einsum("bihe,bjhe->bijh", q, k)
    if narrow_q is not None and narrow_k is not None:
        a = a + (narrow_q * narrow_k).sum(-1)
    weights = softmax_weights(scale * a, entry)
    outs = [torch.einsum("bijh,bjhe->bihe", weights, v)]
    if narrow_v is not None:
        outs.append(torch.einsum("bijh,bijhr->bihr", weights, narrow_v))
    return [out.flatten(2) for out in outs]
