"""Gated positional attention, which begins as a convolution (ConViT, arXiv 2103.10697)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.positions.attend import Attend, HeadAxes, HeadInput
from models.positions.interface import PositionConfig
from models.positions.relative.botnet import needs_image_grid
from models.tokens import TokenGrid


class GatedAttend(Attend):
    """A head weighs by (1 − σ(g))·softmax(q·k/√E) + σ(g)·softmax(pos_weight·r + pos_bias), on an H×W grid.

    r_ij = (Δx, Δy, Δx² + Δy²), Δ = key − query, x the column. Either softmax sums to 1, so their mixture
    does, and the public code's division by its sum is left out; it changes neither values nor gradients.
    A new head looks at one neighbour of its own, the more narrowly the greater `locality`, and its values are
    the tokens.
    """

    plain = False

    def __init__(self, grid: tuple[int, int], heads: int, locality: float) -> None:
        super().__init__()
        self.grid, self.locality = grid, locality
        self.pos_weight = nn.Parameter(torch.empty(heads, 3))
        self.pos_bias = nn.Parameter(torch.empty(heads))
        self.gating = nn.Parameter(torch.empty(heads))

    def forward(self, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        gate_H11 = self.gate(v_BHNE.dtype)
        places_HNN = self.by_place().softmax(-1).to(v_BHNE.dtype)
        content = super().forward(q_BHNE, k_BHNE, v_BHNE, head_input)
        return (1 - gate_H11) * content + gate_H11 * (places_HNN @ v_BHNE)

    def weights(self, q_BHIE: Tensor, k_BHNE: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
        content = super().weights(q_BHIE, k_BHNE, bias, rows)
        gate_H11 = self.gate(content.dtype)
        return (1 - gate_H11) * content + gate_H11 * self.by_place()[:, rows].softmax(-1).to(content.dtype)

    def gate(self, dtype: torch.dtype) -> Tensor:
        return self.gating.sigmoid().view(-1, 1, 1).to(dtype)

    def by_place(self) -> Tensor:
        """Logits[H, N, N] of the places, in float32 or more: squares are too large for bfloat16."""
        device, dtype = self.gating.device, torch.promote_types(self.gating.dtype, torch.float32)
        rows, columns = (torch.arange(n, device=device) for n in self.grid)
        y, x = (place.flatten() for place in torch.meshgrid(rows, columns, indexing="ij"))
        dx, dy = ((place[None, :] - place[:, None]).to(dtype) for place in (x, y))
        weights_H11 = self.pos_weight.to(dtype)[..., None, None].unbind(1)
        logits = sum(w * r for w, r in zip(weights_H11, (dx, dy, dx**2 + dy**2), strict=True))
        return logits + self.pos_bias.to(dtype)[:, None, None]

    def axes(self) -> HeadAxes:
        return {name: {0: "head"} for name in ("pos_weight", "pos_bias", "gating")}

    def draws(self) -> dict[str, Draw]:
        def centres(empty: Tensor, generator: torch.Generator) -> Tensor:
            weight = nn.init.trunc_normal_(empty, std=0.02, generator=generator)
            side = math.isqrt(len(weight))
            for head in range(side**2):
                dx, dy = (place - (side - 1) / 2 for place in divmod(head, side))
                weight[head] = torch.tensor((2 * dx, 2 * dy, -1.0))
            return self.locality * weight

        return {"pos_weight": Draw(formula=centres), "pos_bias": Draw(), "gating": Draw(value=1.0)}

    def projection_draws(self) -> dict[str, Draw]:
        return {"v.weight": Draw(formula=lambda empty, generator: nn.init.eye_(empty)), "v.bias": Draw()}


class GatedPosition(PositionConfig):
    """A gate in every head between its content and its places.

    locality  how narrow a new head looks
    """

    kind: Literal["gpsa"] = "gpsa"
    locality: float = Field(default=1.0, gt=0)

    @property
    def inside_mixer(self) -> bool:
        return True

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        return needs_image_grid(tokens, "places")

    def attend(self, tokens: TokenGrid, heads: int, head_dim: int) -> GatedAttend:
        assert tokens.shape is not None
        rows, columns = tokens.shape
        return GatedAttend((rows, columns), heads, self.locality)
