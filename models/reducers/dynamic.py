"""DynamicViT: predictors decide which tokens go; training masks them, inference gathers the others."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.reducers.interface import PatchReducer, ReducerConfig, patches_of, ranking, take
from models.tokens import TokenGrid

Masked = tuple[Tensor, Tensor, Tensor]  # x[B, N, C], kept[B, N] with 0 for a dropped token, penalty


class Predictor(nn.Module):
    """x[B, N, C], kept[B, N] → log-probabilities[B, N, 2] that a patch is kept or goes.

    Half of the channels are the token's own, half the mean of all tokens that are kept. Source: arXiv
    2106.02034, section 3.2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.enter = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.first, self.second = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, dim // 4)
        self.last = nn.Linear(dim // 4, 2)

    def forward(self, x_BNC: Tensor, kept_BN: Tensor) -> Tensor:
        own, others = F.gelu(self.enter(self.norm(x_BNC))).chunk(2, 2)
        kept_BN1 = kept_BN.unsqueeze(2).to(others.dtype)
        mean_B1C = (others * kept_BN1).sum(1, keepdim=True) / kept_BN1.sum(1, keepdim=True)
        x_BNC = torch.cat((own, mean_B1C.expand_as(others)), 2)
        x_BNC = F.gelu(self.second(F.gelu(self.first(x_BNC))))
        return self.last(x_BNC).log_softmax(2)


class Dynamic(PatchReducer):
    """Keeps the `left` patches with the best scores, by falling score, behind a class token.

    In training all tokens stay: a decision of each patch, drawn by the straight-through Gumbel trick, masks
    those that go in all layers after it, and the squared distance of an image's kept share from `ratio` is
    added to the penalty, times `weight`. The draws are torch's own, as those of dropout.
    """

    def __init__(self, dim: int, tokens: TokenGrid, ratio: float, weight: float) -> None:
        super().__init__(dim, tokens)
        self.ratio, self.weight, self.left = ratio, weight, int(ratio * self.patches)
        self.predictor = Predictor(dim)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_BNC: Tensor, kept_BN: Tensor | None = None, penalty: Tensor | None = None
    ) -> Tensor | Masked:
        if not self.training:
            return super().forward(x_BNC)
        if kept_BN is None or penalty is None:
            kept_BN, penalty = torch.ones_like(x_BNC[..., 0]), x_BNC.new_zeros(())
        special, before_BN = kept_BN[:, : self.first], kept_BN[:, self.first :]
        scores = self.predictor(x_BNC[:, self.first :], before_BN)
        decision_BN = F.gumbel_softmax(scores.to(x_BNC.dtype), hard=True)[..., 0] * before_BN
        off = (decision_BN.mean(1) - self.ratio).square().mean()
        return x_BNC, torch.cat((special, decision_BN), 1), penalty + self.weight * off

    def reduce(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        scores = self.predictor(x_BNC, torch.ones_like(x_BNC[..., 0]))
        kept_BK = ranking(scores[..., 0])[:, : self.left]
        self.tell(kept_BK)
        return take(x_BNC, kept_BK)


def in_parts(stream: Tensor | Masked) -> tuple[Tensor, ...]:
    """x, and where tokens are masked also kept and the penalty."""
    return stream if isinstance(stream, tuple) else (stream,)


def mean_of_kept(x_BNC: Tensor, kept_BN: Tensor | None = None) -> Tensor:
    """[B, C]"""
    if kept_BN is None:
        return x_BNC.mean(1)
    return (x_BNC * kept_BN.unsqueeze(2)).sum(1) / kept_BN.sum(1, keepdim=True)


class DynamicConfig(ReducerConfig):
    """Part of the net's patches, by the scores of a predictor.

    ratio    share that is left, rounded down
    weight   of the penalty on another share in training; the mean over stages is added to the loss
    """

    masks: ClassVar[bool] = True

    kind: Literal["dynamicvit"] = "dynamicvit"
    ratio: float = Field(gt=0, lt=1)
    weight: float = Field(default=2.0, ge=0)

    def refuses(self, tokens: TokenGrid) -> str | None:
        if tokens.latents:
            return "knows no latents: pool: latents reduces the tokens already"
        if not int(self.ratio * patches_of(tokens)):
            return f"ratio={self.ratio} keeps none of {patches_of(tokens)} patches"
        return None

    def after(self, tokens: TokenGrid) -> TokenGrid:
        """In training: all, some of them masked. In inference those that are left stand by their scores."""
        return replace(tokens, shape=None, ungridded=patches_of(tokens), masked=True)

    def build(self, dim: int, tokens: TokenGrid) -> Dynamic:
        return Dynamic(dim, tokens, self.ratio, self.weight)
