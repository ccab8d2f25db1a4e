"""Learned vectors for relative rows and columns, added to keys (BoTNet, arXiv 2101.11605)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.initial import Draw
from models.positions.attend import Attend, HeadInput
from models.positions.interface import PositionConfig
from models.positions.relative.skew import to_keys
from models.tokens import TokenGrid


class BotnetAttend(Attend):
    """Attention with vectors height_rel[2H − 1, E] and width_rel[2W − 1, E] of key − query, shared by all
    heads of an H×W grid: logit_ij = q_i·k_j/√E + q_i·(height_rel_ij + width_rel_ij).

    scale   whether the second product is divided by √E too
    """

    plain = False

    def __init__(self, grid: tuple[int, int], head_dim: int, scale: bool) -> None:
        super().__init__()
        self.grid, self.scale = grid, scale
        self.height_rel = nn.Parameter(torch.empty(2 * grid[0] - 1, head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * grid[1] - 1, head_dim))

    def logit_bias(self, q_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        q = q_BHNE * q_BHNE.shape[-1] ** -0.5 if self.scale else q_BHNE
        q = q.unflatten(2, self.grid)  # [B, H, rows, columns, E]
        rows = to_keys((q @ head_input(self.height_rel).T).transpose(2, 3)).transpose(2, 3)
        columns = to_keys(q @ head_input(self.width_rel).T)
        bias = rows.unsqueeze(-1) + columns.unsqueeze(-2)
        return bias.flatten(4).flatten(2, 3).to(q_BHNE.dtype)

    def draws(self) -> dict[str, Draw]:
        std = self.height_rel.shape[1] ** -0.5
        return {name: Draw(std=std) for name in ("height_rel", "width_rel")}

    def no_decay(self) -> set[str]:
        return {"height_rel", "width_rel"}


class BotnetPosition(PositionConfig):
    """Vectors for the rows and the columns from query to key, in every layer.

    scale  whether the products with the vectors are divided by √E too
    """

    kind: Literal["botnet"] = "botnet"
    scale: bool = True

    @property
    def inside_mixer(self) -> bool:
        return True

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        return needs_image_grid(tokens, "rows and columns")

    def attend(self, tokens: TokenGrid, heads: int, head_dim: int) -> BotnetAttend:
        assert tokens.shape is not None
        rows, columns = tokens.shape
        return BotnetAttend((rows, columns), head_dim, self.scale)


def needs_image_grid(tokens: TokenGrid, what: str) -> str | None:
    """Why tokens that are not on an H×W grid, or not all of them, cannot be told apart by `what`."""
    if tokens.shape is None or len(tokens.shape) != 2:
        return f"it knows {what} of an image, not {tokens.where}"
    if tokens.class_token:
        return f"a class token has no {what}: let it join in a later stage, or write pool: mean"
    return None
