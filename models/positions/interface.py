"""What a position encoding offers: numbers added to the tokens, or a rotation inside the mixers."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.offsets import OffsetGrid
from models.section import Section
from models.tokens import TokenGrid


class PositionConfig(Section):
    """The `position` section of a net, or of one of its stages."""

    @property
    def inside_mixer(self) -> bool:
        """Whether mixers apply it; a mixer that cannot says so by `refuses`."""
        return False

    def embedding(self, tokens: TokenGrid, width: int) -> nn.Parameter | None:
        """A parameter [1, N, C] that is added to the tokens before the first layer; the net draws it."""
        return None

    def rotation(self, grid: OffsetGrid, head_dim: int) -> nn.Module | None:
        """Rotates queries and keys [N, B, H, E]."""
        return None


def from_name(value: Any) -> Any:
    """`position: rope` for `position: {kind: rope}`."""
    return {"kind": value} if isinstance(value, str) else value
