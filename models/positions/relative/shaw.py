"""Learned vectors for relative positions on a sequence, added to keys and values (arXiv 1803.02155)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.positions.attend import Attend, HeadInput
from models.positions.interface import PositionConfig
from models.positions.relative.skew import clip, to_keys, to_relative, unclip
from models.tokens import TokenGrid


class ShawAttend(Attend):
    """Attention with vectors keys, values[2K + 1, E] of key − query, clipped to ±K, shared by all heads.

    logit_ij = (q_i·k_j + q_i·keys_ij)/√E, out_i = Σ_j α_ij (v_j + values_ij); nothing of size N² · E is
    formed. The sum over `values` needs the weights α themselves, so no fused kernel serves.
    """

    plain = plain_values = False

    def __init__(self, head_dim: int, max_distance: int, causal: bool) -> None:
        super().__init__(causal)
        self.relative_keys = nn.Parameter(torch.empty(2 * max_distance + 1, head_dim))
        self.relative_values = nn.Parameter(torch.empty(2 * max_distance + 1, head_dim))

    def forward(self, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        N, K = q_BHNE.shape[2], len(self.relative_keys) // 2
        keys, values = (head_input(table) for table in (self.relative_keys, self.relative_values))
        q_BHNE = q_BHNE * q_BHNE.shape[-1] ** -0.5
        logits = q_BHNE @ k_BHNE.transpose(-1, -2) + to_keys(unclip(q_BHNE @ keys.T, N))
        if self.causal:
            future = torch.ones(N, N, dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(future, float("-inf"))
        weights = logits.softmax(-1).to(v_BHNE.dtype)
        return weights @ v_BHNE + clip(to_relative(weights), K) @ values

    def extend(self, q_BHnE: Tensor, k_BHME: Tensor, v_BHME: Tensor) -> Tensor:
        n, M, K = q_BHnE.shape[2], k_BHME.shape[2], len(self.relative_keys) // 2
        q_BHnE = q_BHnE * q_BHnE.shape[-1] ** -0.5
        place = torch.arange(M, device=q_BHnE.device)
        relative_nM = place - place[M - n :, None]  # key − query
        entry_nM = relative_nM.clamp(-K, K) + K
        by_entry = q_BHnE @ self.relative_keys.T
        logits = q_BHnE @ k_BHME.transpose(-1, -2) + by_entry.gather(
            -1, entry_nM.expand(*by_entry.shape[:2], n, M)
        )
        weights = logits.masked_fill(relative_nM > 0, float("-inf")).softmax(-1)
        summed = torch.zeros_like(by_entry).scatter_add(-1, entry_nM.expand_as(weights), weights)
        return weights @ v_BHME + summed @ self.relative_values

    def draws(self) -> dict[str, Draw]:
        entries, head_dim = self.relative_keys.shape
        bound = (6 / (entries + head_dim)) ** 0.5  # Glorot's, as the public code draws them
        return {name: Draw(bound=bound) for name in ("relative_keys", "relative_values")}

    def no_decay(self) -> set[str]:
        return {"relative_keys", "relative_values"}


class ShawPosition(PositionConfig):
    """Vectors for key − query in every layer; those beyond ±max_distance share the last one.

    max_distance  in tokens
    """

    kind: Literal["shaw"] = "shaw"
    max_distance: int = Field(default=16, ge=1)

    @property
    def inside_mixer(self) -> bool:
        return True

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        if tokens.shape is None or len(tokens.shape) != 1:
            return f"it knows distances in a sequence, not on {tokens.where}: botnet is for images"
        if tokens.class_token:
            return "a class token has no place in a sequence"
        return None

    def attend(self, tokens: TokenGrid, heads: int, head_dim: int) -> ShawAttend:
        return ShawAttend(head_dim, self.max_distance, tokens.causal)
