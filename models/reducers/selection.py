"""Reducers that keep some tokens as they are: the most important ones (EViT), or, as controls, others."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.reducers.interface import KeepConfig, PatchReducer, ranking, take
from models.tokens import TokenGrid


class MostImportant(PatchReducer):
    """Keeps the `left` most important tokens, in that order; the others are dropped, or with `fuse` become
    one token more, their sum weighted by importance.

    The weights are not divided by their sum. Source: arXiv 2202.07800, section 3, and its public code.
    """

    def __init__(self, dim: int, tokens: TokenGrid, left: int, fuse: bool) -> None:
        super().__init__(dim, tokens, ranks=True)
        self.left, self.fuse = left, fuse

    def reduce(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        assert importance_BN is not None
        kept, others = ranking(importance_BN).tensor_split([self.left], 1)
        self.tell(kept, rest=self.left if self.fuse else -1)
        if not self.fuse:
            return take(x_BNC, kept)
        weight_BN1 = importance_BN.gather(1, others).unsqueeze(-1).to(x_BNC.dtype)
        fused_B1C = (take(x_BNC, others) * weight_BN1).sum(1, keepdim=True)
        return torch.cat((take(x_BNC, kept), fused_B1C), 1)


class EvitConfig(KeepConfig):
    """The most important patches, and with `fuse` one token of all others."""

    ranks: ClassVar[bool] = True

    kind: Literal["evit"] = "evit"
    fuse: bool = Field(True, description="the others become one token, or are dropped")

    def count(self, left: int) -> int:
        return left + self.fuse

    def build(self, dim: int, tokens: TokenGrid) -> MostImportant:
        return MostImportant(dim, tokens, self.left(tokens), self.fuse)


class AnyTokens(PatchReducer):
    """Keeps `left` tokens in their order, chosen without a look at them: at random, or evenly spaced.

    Random tokens are drawn anew for every image in training, by torch's own generator, as dropout is.
    Otherwise they are the same for all images.
    """

    def __init__(self, dim: int, tokens: TokenGrid, left: int, random: bool) -> None:
        super().__init__(dim, tokens)
        self.left, self.random = left, random

    def reduce(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        kept_BK = self._places(x_BNC)
        self.tell(kept_BK)
        return take(x_BNC, kept_BK)

    def _places(self, x_BNC: Tensor) -> Tensor:
        B, N, _ = x_BNC.shape
        if not self.random:
            places = (2 * torch.arange(self.left, device=x_BNC.device) + 1) * N // (2 * self.left)
            return places.expand(B, -1)
        if self.training:
            drawn_BN = torch.rand(B, N, device=x_BNC.device)
        else:
            drawn_BN = (
                torch.rand(N, generator=torch.Generator().manual_seed(N)).to(x_BNC.device).expand(B, -1)
            )
        return ranking(drawn_BN)[:, : self.left].sort(1).values


class RandomConfig(KeepConfig):
    """Any patches: a control."""

    kind: Literal["random"] = "random"

    def build(self, dim: int, tokens: TokenGrid) -> AnyTokens:
        return AnyTokens(dim, tokens, self.left(tokens), random=True)


class UniformConfig(KeepConfig):
    """Evenly spaced patches: a control."""

    kind: Literal["uniform"] = "uniform"

    def build(self, dim: int, tokens: TokenGrid) -> AnyTokens:
        return AnyTokens(dim, tokens, self.left(tokens), random=False)
