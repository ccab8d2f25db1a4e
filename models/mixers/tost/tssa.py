"""Token statistics self-attention: heads weight their channels by second moments over the tokens.

Linear in N; there is one projection w, no queries or keys, and no product of tokens with tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.interface import Axes, Mixer, MixerConfig, head_axes, head_width
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid

# They vanish in float16, so statistics are never narrower than float32.
SMALLEST_NORM, SMALLEST_WEIGHT = 1e-12, 1e-8


class TokenStatistics(Mixer):
    """x[B, N, C] → [B, N, C] (arXiv 2412.17810, equations 13 to 16, as the public code has them).

    A token belongs to the heads by Π, a softmax over heads; m is the Π-weighted mean of w² over tokens, and
    the output −Π·w/(1+m). The causal form takes every sum over the tokens so far, with a learned bias per
    position: a token's Π is not revised by later tokens, so it is no prefix of the other form.
    """

    def __init__(
        self, dim: int, tokens: TokenGrid, heads: int, bias: bool = True, out_bias: bool = True
    ) -> None:
        super().__init__(dim, tokens.num_tokens)
        self.heads, self.causal, self.softmax_tokens = heads, tokens.causal, self.num_tokens
        self.w = nn.Linear(dim, dim, bias)
        self.temperature = nn.Parameter(torch.ones(heads, 1))
        self.position_bias = nn.Parameter(torch.zeros(heads, self.num_tokens, 1)) if self.causal else None
        self.out = nn.Linear(dim, dim, out_bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        w = self.w(self.head_input(x_BNC)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, E]
        statistics = torch.float64 if w.dtype == torch.float64 else torch.float32
        with _no_autocast(w.device):
            square = w.to(statistics).square()
            scale = self._causal_scale(square) if self.causal else self._scale(square)
        return self.out((w * scale.to(w.dtype)).transpose(1, 2).flatten(2))

    def _scale(self, square_BHNE: Tensor) -> Tensor:
        """−Π/(1+m) [B, H, N, E] of all tokens."""
        share = square_BHNE / square_BHNE.sum(2, keepdim=True).clamp_min(SMALLEST_NORM**2)
        member_BHN = self.head_softmax(share.sum(-1) * self.temperature.to(share.dtype), 1)
        total = member_BHN.sum(-1, keepdim=True) + SMALLEST_WEIGHT
        moment = (member_BHN / total).unsqueeze(-2) @ square_BHNE  # [B, H, 1, E]
        return -member_BHN.unsqueeze(-1) / (1 + moment)

    def _causal_scale(self, square_BHNE: Tensor) -> Tensor:
        """The same with sums over the tokens up to each."""
        assert self.position_bias is not None
        N, E = square_BHNE.shape[2:]
        before = F.pad(square_BHNE.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
        share = _Share.apply(square_BHNE, before)
        biased = share.sum(-1) + E * self.position_bias[:, :N, 0].to(share.dtype)
        member_BHN1 = self.head_softmax(biased * self.temperature.to(share.dtype), 1).unsqueeze(-1)
        moment = (member_BHN1 * square_BHNE).cumsum(2) / (member_BHN1.cumsum(2) + SMALLEST_WEIGHT)
        return -member_BHN1 / (1 + moment)

    def axes(self) -> Axes:
        declared = head_axes(self, into=("w",), out=("out",))
        declared["temperature"] = {0: "head"}
        if self.causal:
            declared["position_bias"] = {0: "head"}
        return declared

    def draws(self) -> dict[str, Draw]:
        return {"temperature": Draw(value=1.0)} | ({"position_bias": Draw()} if self.causal else {})

    def no_decay(self) -> set[str]:
        return {"temperature", "position_bias"}


class _Share(torch.autograd.Function):
    """own/(own + before). Where nothing was before, the gradient of `own` is zero; as a difference of two
    quotients it would be their rounding errors, which are large for small numbers."""

    @staticmethod
    def forward(ctx, own: Tensor, before: Tensor) -> Tensor:
        total = (own + before).clamp_min(SMALLEST_NORM)
        ctx.save_for_backward(own, before, total)
        return own / total

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        own, before, total = ctx.saved_tensors
        small = own + before < SMALLEST_NORM  # the total is a constant there
        grad = grad / total
        of_own = torch.where(small, grad, grad * before / total)
        return of_own, torch.where(small, 0.0, -grad * own / total)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class TokenStatisticsConfig(MixerConfig):
    """The `mixer` section for token statistics self-attention; heads share the net's width.

    bias      of the projection into the heads
    out_bias  of the projection out of them
    """

    title: ClassVar[str] = "Token statistics"
    causal: ClassVar[bool] = True

    kind: Literal["tssa"] = "tssa"
    heads: int = Field(default=4, ge=1)
    bias: bool = True
    out_bias: bool = True

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        if tokens.causal and tokens.shape is not None and len(tokens.shape) != 1:
            return f"has a causal form for sequences only, not for a grid of {tokens.shape}"
        return super().refuses_tokens(tokens)

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> TokenStatistics:
        head_width(dim, self.heads)
        return TokenStatistics(dim, tokens, self.heads, self.bias, self.out_bias)
