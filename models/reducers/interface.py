"""What a stage's `reduce` offers: fewer tokens for the layers after it."""

from __future__ import annotations

from torch import nn

from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.measured_cost import measured_cost
from models.section import Section
from models.tokens import TokenGrid


class Reducer(nn.Module):
    """x[B, N, C] → [B, M, C], M below N and the same for all samples."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.dim, self.num_tokens = dim, num_tokens

    def draws(self) -> dict[str, Draw]:
        """See `Mixer.draws`."""
        return {}

    def cost(self, load: Load) -> Cost:
        """See `Mixer.cost`."""
        return measured_cost(self, load)


class ReducerConfig(Section):
    """The `reduce` section of a stage."""

    def after(self, tokens: TokenGrid) -> TokenGrid:
        """The tokens that are left; raises ValueError, in one line, for tokens that cannot be reduced so."""
        raise NotImplementedError

    def build(self, dim: int, tokens: TokenGrid) -> Reducer:
        raise NotImplementedError
