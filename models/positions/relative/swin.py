"""A learned number for each relative position and head, added to the logits (Swin, arXiv 2103.14030)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initial import Draw
from models.offsets import MASKED, OffsetGrid
from models.positions.attend import Attend, HeadAxes, HeadInput
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class BiasAttend(Attend):
    """Attention with logit_ij = q_i·k_j/√E + bias[head, entry of δ], δ = query − key.

    The window is the whole grid, of any dimensions, causal or not; K are its offsets. A class token has
    offsets of its own (cls→cls, cls→token, token→cls), which begin at 0; the public code has none.
    """

    plain = False

    def __init__(self, grid: OffsetGrid, heads: int) -> None:
        super().__init__(grid.causal)
        self.grid = grid
        self.bias = nn.Parameter(torch.empty(heads, grid.num_entries))

    def forward(self, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        entries = _entries(self.grid, self.bias.device)
        bias_HNN = self.bias[:, entries].to(q_BHNE.dtype)  # MASKED is the last entry here
        if self.causal:
            bias_HNN = bias_HNN.masked_fill(entries == MASKED, float("-inf"))
        return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=bias_HNN)

    def axes(self) -> HeadAxes:
        return {"bias": {0: "head"}}

    def draws(self) -> dict[str, Draw]:
        specials = 3 if self.grid.class_token else 0

        def formula(empty: Tensor, generator: torch.Generator) -> Tensor:
            table = nn.init.trunc_normal_(empty, std=0.02, generator=generator)
            table[:, table.shape[1] - specials :] = 0
            return table

        return {"bias": Draw(formula=formula)}

    def no_decay(self) -> set[str]:
        return {"bias"}


@lru_cache(maxsize=64)
def _entries(grid: OffsetGrid, device: torch.device) -> Tensor:
    return grid.table.to(device)


class SwinPosition(PositionConfig):
    """A bias for every offset and head, in every layer."""

    kind: Literal["swin"] = "swin"

    @property
    def inside_mixer(self) -> bool:
        return True

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        return "tokens have no grid here" if tokens.shape is None else None

    def attend(self, tokens: TokenGrid, heads: int, head_dim: int) -> BiasAttend:
        return BiasAttend(tokens.offsets(), heads)
