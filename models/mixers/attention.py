"""Plain multi-head self-attention: one query, key and value matrix for all pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.mixers.cost import Cost, Load
from models.mixers.interface import Axes, Mixer, MixerConfig
from models.positions.interface import PositionConfig
from models.positions.learned import NoPosition
from models.tokens import TokenGrid


class Attention(Mixer):
    """x[B, N, C] → [B, N, C], causal if the tokens are; `position` may rotate queries and keys.

    Source: arXiv 1706.03762.
    """

    def __init__(
        self,
        dim: int,
        tokens: TokenGrid,
        heads: int,
        head_dim: int = 64,
        position: PositionConfig | None = None,
    ) -> None:
        super().__init__(dim, tokens.num_tokens)
        position = position or NoPosition()
        self.heads, self.causal = heads, tokens.causal
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.k = nn.Linear(dim, heads * head_dim, bias=False)
        self.v = nn.Linear(dim, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.rotation = position.rotation(tokens.offsets(), head_dim) if position.inside_mixer else None

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = self.head_input(x_BNC)
        q, k, v = (project(x_BNC).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        if self.rotation is not None:
            q, k = (self.rotation(t.transpose(0, 1)).transpose(0, 1) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, N, E]
        out_BHNE = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(out_BHNE.transpose(1, 2).flatten(2))

    def axes(self) -> Axes:
        return {
            "q.weight": {0: "head"},
            "k.weight": {0: "head"},
            "v.weight": {0: "head"},
            "out.weight": {1: "head"},
        }

    def cost(self, load: Load) -> Cost:
        """By formulas; T is B·N. What autograd saves was read off `forward`."""
        size, N, T = load.sizes, self.num_tokens, load.samples * self.num_tokens
        inner = self.out.in_features
        pairs = N * (N + 1) // 2 if self.causal else N * N
        projections = [p for name, p in self.named_parameters() if name.endswith(".weight")]
        forward = load.samples * 4 * pairs * inner // load.head_parts
        forward += sum(2 * T * p.numel() for p in projections) // load.head_parts
        own, heads = inner // load.head_parts, self.heads // load.head_parts
        return Cost(
            forward=forward,
            recomputed=0,
            saved=T * self.dim * size.product + 5 * T * own * size.product + T * heads * 4,
            work=4 * T * own * size.product,
            head_gradients=T * self.dim * size.residual,
        )


class AttentionConfig(MixerConfig):
    """The `mixer` section for self-attention."""

    title: ClassVar[str] = "Self-attention"
    causal: ClassVar[bool] = True

    kind: Literal["attention"] = "attention"
    heads: int = Field(default=3, ge=1)
    head_dim: int = Field(default=64, ge=1)

    def refuses(self, position: PositionConfig) -> str | None:
        return None

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Attention:
        return Attention(dim, tokens, self.heads, self.head_dim, position)
