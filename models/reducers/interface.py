"""What a stage's `reduce` offers: fewer tokens for the layers after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.measured_cost import measured_cost
from models.section import Section
from models.tokens import TokenGrid


class Reducer(nn.Module):
    """x[B, N, C] → [B, M, C], M below N and the same for all samples.

    One that ranks tokens (`ReducerConfig.ranks`) is called with x and their importance[B, N], in which a
    class token is left out.

    watch   where a picture is wanted: called with group[B, N], the token of the output that each token went
            into, −1 if into none; the class token is left out on both sides
    """

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.dim, self.num_tokens = dim, num_tokens
        self.watch: Callable[[Tensor], None] | None = None

    def draws(self) -> dict[str, Draw]:
        """See `Mixer.draws`."""
        return {}

    def cost(self, load: Load) -> Cost:
        """See `Mixer.cost`."""
        return measured_cost(self, load)


class ReducerConfig(Section):
    """The `reduce` section of a stage.

    place   where it acts in the stage's last layer: "inside", between mixer and feed-forward, or "after" both
    ranks   whether it asks the mixer of that layer how important each token is
    masks   whether in training it only masks tokens, and takes masked ones
    """

    place: ClassVar[Literal["inside", "after"]] = "after"
    ranks: ClassVar[bool] = False
    masks: ClassVar[bool] = False

    def refuses(self, tokens: TokenGrid) -> str | None:
        """Why these tokens cannot be reduced so; None where they can."""
        return None

    def keeps_all(self, tokens: TokenGrid) -> bool:
        """Whether the tokens stay as they are, so that there is nothing to build."""
        return False

    def after(self, tokens: TokenGrid) -> TokenGrid:
        """The tokens that are left; raises ValueError, in one line, for tokens that cannot be reduced so."""
        raise NotImplementedError

    def build(self, dim: int, tokens: TokenGrid) -> Reducer:
        raise NotImplementedError


class PatchReducer(Reducer):
    """Reduces the patches, and passes a class token on as it is."""

    def __init__(self, dim: int, tokens: TokenGrid, ranks: bool = False) -> None:
        super().__init__(dim, tokens.num_tokens)
        self.first, self.patches = int(tokens.class_token), patches_of(tokens)
        if ranks:
            self.further_shapes = ((self.patches,),)

    def forward(self, x_BNC: Tensor, importance_BN: Tensor | None = None) -> Tensor:
        y_BMC = self.reduce(x_BNC[:, self.first :], importance_BN)
        return torch.cat((x_BNC[:, : self.first], y_BMC), 1) if self.first else y_BMC

    def reduce(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        """x[B, N, C] → [B, M, C] without the class token."""
        raise NotImplementedError

    def tell(self, kept_BK: Tensor, rest: int = -1) -> None:
        """Tells `watch` of tokens that are kept as they are; all others went into the token `rest`."""
        if self.watch is not None:
            group_BN = kept_BK.new_full((len(kept_BK), self.patches), rest)
            places = torch.arange(kept_BK.shape[1], device=kept_BK.device).expand_as(kept_BK)
            self.watch(group_BN.scatter(1, kept_BK, places))


class KeepConfig(ReducerConfig):
    """Options of reducers that leave a share of the patches: keep·N of N, rounded up; all of them: no
    reduction."""

    place: ClassVar[Literal["inside", "after"]] = "inside"

    keep: float = Field(gt=0, le=1, description="share of the patches that are left, rounded up")

    def refuses(self, tokens: TokenGrid) -> str | None:
        return "knows no latents: pool: latents reduces the tokens already" if tokens.latents else None

    def after(self, tokens: TokenGrid) -> TokenGrid:
        """In an order of their own, so without a grid."""
        if self.keeps_all(tokens):
            return tokens
        return replace(tokens, shape=None, ungridded=self.count(self.left(tokens)))

    def keeps_all(self, tokens: TokenGrid) -> bool:
        return self.left(tokens) == patches_of(tokens)

    def left(self, tokens: TokenGrid) -> int:
        """keep·N, rounded up; products such as 0.55·100 are not quite what they seem."""
        return math.ceil(self.keep * patches_of(tokens) - 1e-9)

    def count(self, left: int) -> int:
        """The tokens that are left where `left` are kept."""
        return left


def patches_of(tokens: TokenGrid) -> int:
    """N without a class token and latents."""
    return tokens.num_tokens - tokens.class_token - tokens.latents


def take(x_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """The tokens at `index` of each sample, [B, M, C]."""
    return x_BNC.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, x_BNC.shape[-1]))


def ranking(score_BN: Tensor) -> Tensor:
    """The tokens [B, N] from the highest score to the lowest; of equal ones the first comes first."""
    return score_BN.detach().sort(dim=1, descending=True, stable=True).indices
