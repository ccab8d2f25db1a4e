"""The interface of a walk: a way to visit the pairs of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from models.ops.recipe import Recipe
from models.ops.walk.schedule import Schedule


class Walk(Protocol):
    """A way to visit the pairs of a schedule.

    Sources are [N, B, C_s] in the dtype of the products, banks [K, C_s, D_b]; statistics, outputs and the
    gradients of the sources are float32, or float64 for float64 sources. Outputs and those gradients may be
    in the sources' dtype where the schedule is complete, so that nothing is to be merged or added.
    """

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """lse[N, B, H] and a normalised out[N, B, H, E] for each value segment, over the pairs here (−inf
        and 0 for a query without any), and what backward is to be given if `recipe.keep`."""
        ...

    @staticmethod
    def backward(
        recipe: Recipe,
        schedule: Schedule,
        sources: Sequence[Tensor],
        banks: Sequence[Tensor],
        kept: Sequence[Tensor],
        lse: Tensor,
        delta: Tensor,
        grads: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """∂sources and ∂banks from the pairs here, given the merged lse, delta[N, B, H] = Σ ⟨∂out, out⟩ with
        the merged outs, and each ∂out[N, B, H, E]."""
        ...
