"""Cross-covariance attention: channels attend to channels, over all tokens. Linear in N."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.interface import Axes, Mixer, MixerConfig, head_axes, head_width
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class CrossCovariance(Mixer):
    """x[B, N, C] → [B, N, C] (arXiv 2106.09681, section 3.2).

    Per head, weights [E, E] between channels are the softmax of the products of queries and keys that are
    normalised over tokens, times a learned temperature.
    """

    def __init__(self, dim: int, num_tokens: int, heads: int, bias: bool = True) -> None:
        super().__init__(dim, num_tokens)
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias) for _ in range(3))
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = self.head_input(x_BNC)
        q, k, v = (
            project(x_BNC).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)  # [B, H, E, N]
            for project in (self.q, self.k, self.v)
        )
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights_BHEE = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1)
        return self.out((weights_BHEE.to(v.dtype) @ v).permute(0, 3, 1, 2).flatten(2))

    def axes(self) -> Axes:
        declared = head_axes(self, into=("q", "k", "v"), out=("out",))
        declared["temperature"] = {0: "head"}
        return declared

    def draws(self) -> dict[str, Draw]:
        return {"temperature": Draw(value=1.0)}

    def no_decay(self) -> set[str]:
        return {"temperature"}


class CrossCovarianceConfig(MixerConfig):
    """The `mixer` section for cross-covariance attention; heads share the net's width.

    It has no causal form: norms and weights are sums over all tokens.

    bias  of the projections into the heads
    """

    title: ClassVar[str] = "Cross-covariance"

    kind: Literal["xca"] = "xca"
    heads: int = Field(default=4, ge=1)
    bias: bool = True

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> CrossCovariance:
        head_width(dim, self.heads)
        return CrossCovariance(dim, tokens.num_tokens, self.heads, self.bias)
