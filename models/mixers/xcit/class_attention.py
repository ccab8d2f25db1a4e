"""Class attention: the class token reads all tokens, which stay as they are (arXiv 2103.17239)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.mixers.interface import Axes, Mixer, MixerConfig, head_axes, head_width
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class ClassAttention(Mixer):
    """x[B, N, C] → [B, N, C]: token 0 becomes its attention over all tokens, the others stay."""

    def __init__(self, dim: int, num_tokens: int, heads: int, bias: bool = True) -> None:
        super().__init__(dim, num_tokens)
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        inner_BNC = self.head_input(x_BNC)
        q, k, v = (  # queries of all tokens, as published costs have it
            project(inner_BNC).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, E]
            for project in (self.q, self.k, self.v)
        )
        read_BH1E = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        class_B1C = self.out(read_BH1E.transpose(1, 2).flatten(2))
        return torch.cat((class_B1C, x_BNC[:, 1:].to(class_B1C.dtype)), 1)

    def tokens_out(self, linear: str) -> int:
        return 1

    def axes(self) -> Axes:
        return head_axes(self, into=("q", "k", "v"), out=("out",))


class ClassAttentionConfig(MixerConfig):
    """The `class_attention` section of an image net: the layers after its body in which a class token reads.

    layers       how many
    norm_tokens  the second norm is of all tokens; false: of the class token only
    bias  of the projections into the heads
    """

    title: ClassVar[str] = "Class attention"

    kind: Literal["class_attention"] = "class_attention"
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    bias: bool = True
    norm_tokens: bool = True

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> ClassAttention:
        head_width(dim, self.heads)
        return ClassAttention(dim, tokens.num_tokens, self.heads, self.bias)
