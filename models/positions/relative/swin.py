"""A learned number for each relative position and head, added to the logits (Swin, arXiv 2103.14030)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initial import Draw
from models.offsets import OffsetGrid
from models.positions.attend import Attend, HeadAxes, HeadInput
from models.positions.interface import PositionConfig
from models.positions.relative.skew import to_keys
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

    def logit_bias(self, q_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        return self.of_pairs().to(q_BHNE.dtype)

    def extend(self, q_BHnE: Tensor, k_BHME: Tensor, v_BHME: Tensor) -> Tensor:
        n, M = q_BHnE.shape[2], k_BHME.shape[2]
        place = torch.arange(M, device=q_BHnE.device)
        delta_nM = place[M - n :, None] - place
        bias_HnM = self.bias[:, delta_nM.clamp_min(0)].masked_fill(delta_nM < 0, float("-inf"))
        return F.scaled_dot_product_attention(q_BHnE, k_BHME, v_BHME, attn_mask=bias_HnM.to(q_BHnE.dtype))

    def of_pairs(self) -> Tensor:
        """The bias of each pair [heads, N, N]; −∞ for a key in the future. No index, so that gradients add up
        in a fixed order."""
        shape, specials = self.grid.shape, 3 * self.grid.class_token
        own_HK = self.bias[:, : self.bias.shape[1] - specials]
        by_offset = own_HK.unflatten(1, [n if self.causal else 2 * n - 1 for n in shape])
        pairs = by_offset.flip(*range(1, 1 + len(shape)))  # by key − query
        if self.causal:
            pairs = F.pad(pairs, (0, shape[0] - 1), value=float("-inf"))
        for n in shape:
            row = pairs.movedim(1, -1).unsqueeze(-2)
            pairs = to_keys(row.expand(*row.shape[:-2], n, row.shape[-1]))
        places = range(1, 2 * len(shape), 2)  # of queries; those of keys follow each
        pairs_HNN = pairs.permute(0, *places, *(place + 1 for place in places))
        pairs_HNN = pairs_HNN.reshape(len(self.bias), self.grid.grid_tokens, self.grid.grid_tokens)
        if not specials:
            return pairs_HNN
        cls_cls, cls_query, cls_key = self.bias[:, -specials:, None, None].unbind(1)
        N = self.grid.grid_tokens
        first = torch.cat((cls_cls, cls_query.expand(-1, 1, N)), 2)
        return torch.cat((first, torch.cat((cls_key.expand(-1, N, 1), pairs_HNN), 2)), 1)

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
