"""Combiner attention: the own segment token by token, everything else by summaries of segments."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from models.mixers.combiner.summaries import axial, fixed, mixture, row_values
from models.mixers.interface import Axes, Mixer, MixerConfig, head_axes, head_width
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid

Form = Literal["fixed", "axial", "mixture"]


class Combiner(Mixer):
    """x[B, N, C] → [B, N, C] over rows of `segment` tokens (arXiv 2107.05768, section 4, and its JAX code).

    fixed    each earlier row by one summary
    axial    each earlier row by what its token of the same column has gathered of it
    mixture  rows and columns by summaries of all their prefixes and suffixes

    One softmax runs over tokens and summaries; queries are divided by √E at once. Only `fixed` has a form
    that is not causal, of our own: all rows but the own by their summaries.
    """

    def __init__(
        self, dim: int, num_tokens: int, heads: int, head_dim: int, segment: int, form: Form, causal: bool
    ) -> None:
        super().__init__(dim, num_tokens)
        self.heads, self.segment, self.form, self.causal = heads, segment, form, causal
        inner = heads * head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, dim, bias=False)
        if form == "axial":
            self.row_in, self.row_key = nn.Linear(inner, dim, bias=False), nn.Linear(dim, inner, bias=False)
            self.row_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x_BNC: Tensor) -> Tensor:
        inner_BNC = self.head_input(x_BNC)
        q, k, v = (self._rows(project(inner_BNC)) for project in (self.q, self.k, self.v))
        q = q * q.shape[-1] ** -0.5
        if self.form == "axial":
            gathered = row_values(q, k, v)
            key_BNC = self.row_norm(self.row_in(self._flat(gathered)) + x_BNC)
            out = axial(q, k, v, self._rows(self.row_key(self.head_input(key_BNC))), gathered)
        elif self.form == "mixture":
            out = mixture(q, k, v)
        else:
            out = fixed(q, k, v, self.causal)
        return self.out(self._flat(out))

    def _rows(self, x_BND: Tensor) -> Tensor:
        """[B, H, rows, segment, E]"""
        return x_BND.unflatten(-1, (self.heads, -1)).unflatten(1, (-1, self.segment)).permute(0, 3, 1, 2, 4)

    def _flat(self, x_BHRSE: Tensor) -> Tensor:
        """[B, N, D]"""
        return x_BHRSE.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)

    def axes(self) -> Axes:
        if self.form == "axial":
            return head_axes(self, into=("q", "k", "v", "row_key"), out=("out", "row_in"))
        return head_axes(self, into=("q", "k", "v"), out=("out",))


class CombinerConfig(MixerConfig):
    """The `mixer` section for Combiner attention; heads share the net's width.

    form     fixed, axial or mixture: which summaries of earlier segments a token sees
    segment  length of a segment, in tokens; divides their number
    """

    title: ClassVar[str] = "Combiner"
    causal: ClassVar[bool] = True

    kind: Literal["combiner"] = "combiner"
    form: Form = "fixed"
    heads: int = Field(default=3, ge=1)
    segment: int = Field(default=16, ge=1)

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        if not tokens.causal and self.form != "fixed":
            return f"has only a causal form with form={self.form}; write form: fixed"
        if tokens.class_token or tokens.latents:
            return "cuts the tokens into segments, where a class token has no place: write pool: mean"
        if tokens.num_tokens % self.segment:
            return (
                f"cuts the tokens into segments: segment={self.segment} does not divide {tokens.num_tokens}"
            )
        return super().refuses_tokens(tokens)

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Combiner:
        head_dim = head_width(dim, self.heads)
        return Combiner(dim, tokens.num_tokens, self.heads, head_dim, self.segment, self.form, tokens.causal)
