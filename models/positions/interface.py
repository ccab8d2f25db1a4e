"""What a position encoding offers: numbers added to the tokens, or its own attention inside the mixers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.offsets import OffsetGrid
from models.positions.attend import Attend
from models.section import Section
from models.tokens import TokenGrid

Embedding = nn.Parameter | nn.Module


class PositionConfig(Section):
    """The `position` section of a net, or of one of its stages."""

    @property
    def inside_mixer(self) -> bool:
        """Whether mixers apply it; a mixer that cannot says so by `refuses`."""
        return False

    @property
    def rotates(self) -> bool:
        """Whether all that it does inside a mixer is to rotate queries and keys, by `rotation`."""
        return False

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        """Why these tokens, C wide, cannot be told apart so; None where they can."""
        return None

    def embedding(self, tokens: TokenGrid, width: int) -> Embedding | None:
        """What is added to the tokens before the first layer: a parameter [1, N, C] that the net draws, or a
        module that gives these numbers (see `add_positions`)."""
        return None

    def rotation(self, grid: OffsetGrid, head_dim: int) -> nn.Module | None:
        """Rotates queries and keys [N, B, H, E]."""
        return None

    def attend(self, tokens: TokenGrid, heads: int, head_dim: int) -> Attend:
        """The attention of a layer of plain self-attention."""
        return Attend(tokens.causal)


def add_positions(x_BNC: Tensor, positions: Embedding | None) -> Tensor:
    """x with the positions of `PositionConfig.embedding` added; a module is called with x."""
    if positions is None:
        return x_BNC
    return x_BNC + (positions(x_BNC) if isinstance(positions, nn.Module) else positions)


def from_name(value: Any) -> Any:
    """`position: rope` for `position: {kind: rope}`."""
    return {"kind": value} if isinstance(value, str) else value
