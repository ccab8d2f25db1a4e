"""The tokens of a layer: how many, and where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.ablations.pair_grid import PairGrid
from models.offsets import OffsetGrid


@dataclass(frozen=True)
class TokenGrid:
    """N tokens on a grid, or without one after a reduction.

    shape        (H, W) of an image, (N,) of a sequence; None where a reduction broke the grid
    causal       a sequence in which no token sees a later one
    class_token  token 0 is not on the grid
    ungridded    number of tokens where there is no grid, class token not included
    latents      learned tokens of no place, before all others
    masked       in training, tokens that were dropped before are still there, masked
    """

    shape: tuple[int, ...] | None
    causal: bool = False
    class_token: bool = False
    ungridded: int = 0
    latents: int = 0
    masked: bool = False

    @property
    def num_tokens(self) -> int:
        """N, with latents and the class token."""
        on_grid = self.ungridded if self.shape is None else math.prod(self.shape)
        return on_grid + self.class_token + self.latents

    @property
    def where(self) -> str:
        """The tokens' places, for messages."""
        if self.shape is None:
            return "tokens without a grid"
        if len(self.shape) == 1:
            return f"a sequence of {self.shape[0]}"
        return f"a grid of {'×'.join(map(str, self.shape))}"

    def offsets(self, share: str = "none", index: str = "offset") -> OffsetGrid:
        """The offsets between these tokens, or their pairs (`index`: pair or scattered); raises ValueError
        where they have no grid."""
        if self.shape is None:
            raise ValueError("tokens have no grid here: a `reduce` of an earlier stage broke it")
        if index != "offset":
            return PairGrid(self.shape, self.class_token, index == "scattered")
        return OffsetGrid(self.shape, self.causal, self.class_token, share)
