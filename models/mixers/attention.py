"""Plain multi-head self-attention: one query, key and value matrix for all pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.offsets import OffsetGrid
from models.positions.rope import Rope


class Attention(nn.Module):
    """x[B, N, C] → [B, N, C], causal if the grid is; `rope` turns queries and keys by position.

    Source: arXiv 1706.03762.
    """

    def __init__(
        self, dim: int, grid: OffsetGrid, heads: int, head_dim: int = 64, rope: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, grid.causal
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.k = nn.Linear(dim, heads * head_dim, bias=False)
        self.v = nn.Linear(dim, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.rope = Rope(grid, head_dim) if rope else None
        self.enter = nn.Identity()  # stands where the heads part; parallel/ sums their gradients here

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = self.enter(x_BNC)
        q, k, v = (project(x_BNC).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        if self.rope is not None:
            q, k = (self.rope(t.transpose(0, 1)).transpose(0, 1) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, N, E]
        out_BHNE = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(out_BHNE.transpose(1, 2).flatten(2))


class AttentionConfig(BaseModel):
    """The `mixer` section for self-attention."""

    model_config = ConfigDict(extra="forbid")

    title: ClassVar[str] = "Self-attention"
    kind: Literal["attention"] = "attention"
    heads: int = Field(default=3, ge=1)
    head_dim: int = Field(default=64, ge=1)
    rope: bool = False

    def knows_positions(self) -> bool:
        """Whether the net needs no position embeddings beside this mixer."""
        return self.rope

    def build(self, dim: int, shape: tuple[int, ...], causal: bool, class_token: bool) -> Attention:
        grid = OffsetGrid(shape, causal, class_token)
        return Attention(dim, grid, self.heads, self.head_dim, self.rope)
