"""Structure embedding: heads that mix tokens by content, by learnt shifts, or by fixed ones, in one layer."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.interface import Axes, Mixer, MixerConfig
from models.mixers.structure.product import shift_matrices
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class Structure(Mixer):
    """x[B, N, C] → Y = Σ_k A_k X Θ_k + bias, [B, N, C].

    attention_heads   A_k = softmax over keys of X W^q_k W^k_kᵀ Xᵀ/√E, with W[C, E]
    shift_heads       A_k = Σ_δ π_kδ S_δ, π_k = softmax of `mixture`[k] over the offsets δ = query − key
                      within ±reach along each dimension of the grid (causal: 0 … reach)
    every_shift       besides, or alone: one A_k = S_δ for every such offset, which is a convolution
    factored          Θ_k = W^v_k W^o_k of rank E; else any matrix [C, C]

    S_δ[i, j] is 1 where p_j = p_i − δ: what lies beyond the grid counts as zeros, and rows of A_k near the
    border are not normalised again. Shifts are computed as depthwise convolutions, in time linear in N.
    Attention heads alone are multi-head attention. Source: arXiv 1905.01289.
    """

    def __init__(
        self,
        dim: int,
        tokens: TokenGrid,
        attention_heads: int,
        shift_heads: int,
        reach: tuple[int, ...] = (),
        head_dim: int = 64,
        every_shift: bool = False,
        factored: bool = True,
    ) -> None:
        super().__init__(dim, tokens.num_tokens)
        self.tokens, self.reach, self.head_dim = tokens, reach, head_dim
        self.heads = math.gcd(attention_heads, shift_heads) or 1
        self.sides = tuple(r + 1 if tokens.causal else 2 * r + 1 for r in reach)
        if attention_heads:
            self.q = nn.Linear(dim, attention_heads * head_dim, bias=False)
            self.k = nn.Linear(dim, attention_heads * head_dim, bias=False)
        if shift_heads:
            self.mixture = nn.Parameter(torch.randn(shift_heads, *self.sides))
        counts = {
            "attention": attention_heads,
            "shift": shift_heads,
            "every": math.prod(self.sides) if every_shift else 0,
        }
        self.values, self.outs = nn.ModuleDict(), nn.ModuleDict()
        for kind, count in counts.items():
            if count and factored:
                self.values[kind] = nn.Linear(dim, count * head_dim, bias=False)
            if count:
                self.outs[kind] = nn.Linear(count * (head_dim if factored else dim), dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_heads, y_BNC = self.head_input(x_BNC), self.bias
        if "attention" in self.outs:
            y_BNC = y_BNC + self._out("attention", self._attend(x_heads))
        if "shift" in self.outs:
            y_BNC = y_BNC + self._out("shift", self._shift("shift", x_heads, self.mixtures()))
        if "every" in self.outs:  # not divided by heads: every rank has all offsets
            each = torch.eye(math.prod(self.sides), dtype=x_BNC.dtype, device=x_BNC.device)
            y_BNC = y_BNC + self._out("every", self._shift("every", x_BNC, each.view(-1, *self.sides)))
        return y_BNC

    def mixtures(self) -> Tensor:
        """π[shift heads, …] over the offsets of the window, a dimension for each, least first."""
        return self.mixture.flatten(1).softmax(1).view_as(self.mixture)

    def _attend(self, x_BNC: Tensor) -> Tensor:
        q, k = self._queries_and_keys(x_BNC)
        v = self._values("attention", x_BNC, q.shape[1])
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.tokens.causal)

    def _queries_and_keys(self, x_BNC: Tensor) -> list[Tensor]:
        """Each [B, H, N, E]."""
        projected = [self.get_submodule(name)(x_BNC) for name in "qk"]
        return [each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in projected]

    def _shift(self, kind: str, x_BNC: Tensor, weights: Tensor) -> Tensor:
        """Σ_δ weights[k, δ] S_δ V_k, [B, H, N, …], as a convolution of each head's grid."""
        assert self.tokens.shape is not None
        v_BHNE = self._values(kind, x_BNC, len(weights))
        B, H, _, width = v_BHNE.shape
        grid = v_BHNE.permute(0, 3, 1, 2).reshape(B * width, H, *self.tokens.shape)
        after = 0 if self.tokens.causal else 1
        grid = F.pad(grid, [pad for r in reversed(self.reach) for pad in (r, after * r)])
        kernel = weights.flip(tuple(range(1, weights.dim()))).unsqueeze(1).to(grid.dtype)
        out = CONVOLUTIONS[len(self.reach) - 1](grid, kernel, groups=H)
        return out.reshape(B, width, H, -1).permute(0, 2, 3, 1)

    def _values(self, kind: str, x_BNC: Tensor, heads: int) -> Tensor:
        """V_k[B, H, N, E]; without factors, x itself in every head."""
        if kind in self.values:
            return self.values[kind](x_BNC).unflatten(-1, (heads, -1)).transpose(1, 2)
        return x_BNC.unsqueeze(1).expand(-1, heads, -1, -1)

    def _out(self, kind: str, heads_BHNE: Tensor) -> Tensor:
        return self.outs[kind](heads_BHNE.transpose(1, 2).flatten(2))

    def matrices(self, x_BNC: Tensor) -> Tensor:
        """A[B, K, N, N] of all heads: attention, shifts, every shift. With `thetas`, the layer's definition:
        its outputs are `structured(x, matrices, thetas) + bias`."""
        found = []
        if "attention" in self.outs:
            q, k = self._queries_and_keys(x_BNC)
            logits = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
            if self.tokens.causal:
                future = torch.ones(self.num_tokens, self.num_tokens, dtype=torch.bool).triu(1)
                logits = logits.masked_fill(future.to(x_BNC.device), float("-inf"))
            found.append(logits.softmax(-1))
        if self.reach:
            assert self.tokens.shape is not None
            shifts_KNN = shift_matrices(self.tokens.shape, self.reach, self.tokens.causal).to(x_BNC)
            if "shift" in self.outs:
                found.append(torch.einsum("hk,kmn->hmn", self.mixtures().flatten(1), shifts_KNN)[None])
            if "every" in self.outs:
                found.append(shifts_KNN[None])
        return torch.cat([each.expand(len(x_BNC), -1, -1, -1) for each in found], 1)

    def weights(self, x_BNC: Tensor) -> Tensor:
        return self.matrices(x_BNC)

    def shifts(self) -> Tensor | None:
        return self.mixtures() if "shift" in self.outs else None

    def thetas(self) -> Tensor:
        """Θ[K, C, C] of all heads, in the order of `matrices`."""
        found = []
        for kind, out in self.outs.items():
            width = self.head_dim if kind in self.values else self.dim
            theta_KEC: Tensor = out.get_parameter("weight").T.unflatten(0, (-1, width))
            if kind in self.values:
                into_CKE = self.values[kind].get_parameter("weight").T.unflatten(1, (-1, width))
                theta_KEC = into_CKE.transpose(0, 1) @ theta_KEC
            found.append(theta_KEC)
        return torch.cat(found)

    def axes(self) -> Axes:
        declared: Axes = {}
        if "attention" in self.outs:
            declared |= {"q.weight": {0: "head"}, "k.weight": {0: "head"}}
        if "shift" in self.outs:
            declared["mixture"] = {0: "head"}
        for kind in ("attention", "shift"):
            if kind in self.values:
                declared[f"values.{kind}.weight"] = {0: "head"}
            if kind in self.outs:
                declared[f"outs.{kind}.weight"] = {1: "head"}
        return declared

    def draws(self) -> dict[str, Draw]:
        """A new head prefers offsets of its own: its π is the softmax of normal numbers."""
        return {"mixture": Draw(std=1.0), "bias": Draw()}

    def no_decay(self) -> set[str]:
        return {"mixture"}


class StructureConfig(MixerConfig):
    """The `mixer` section for structure embedding; `Structure` says what each key means.

    reach   of shifts, in tokens along every dimension, or one number for each; null: the whole grid
    attention_heads  heads that attend
    shift_heads      heads that shift the tokens by learnt amounts
    every_shift      besides, one matrix for every shift within reach: a convolution
    factored         values and outputs of rank E a head; false: any matrix [C, C]
    """

    title: ClassVar[str] = "Structure embedding"
    causal: ClassVar[bool] = True

    kind: Literal["structure"] = "structure"
    attention_heads: int = Field(default=2, ge=0)
    shift_heads: int = Field(default=2, ge=0)
    reach: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] | None = 3
    head_dim: int = Field(default=64, ge=1)
    every_shift: bool = False
    factored: bool = True

    @property
    def shifts(self) -> bool:
        """Whether any head shifts."""
        return self.shift_heads > 0 or self.every_shift

    def knows_positions(self) -> bool:
        return self.shifts

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        if not self.attention_heads and not self.shifts:
            return "has no head: attention_heads and shift_heads are 0, every_shift is false"
        if not self.shifts:
            return None
        if tokens.shape is None:
            return "shifts tokens on a grid, and a `reduce` of an earlier stage broke it"
        if tokens.class_token:
            return "shifts tokens on a grid, where the class token has no place: write pool: mean"
        if len(tokens.shape) > len(CONVOLUTIONS):
            return f"shifts along at most {len(CONVOLUTIONS)} dimensions, and this is {tokens.where}"
        if isinstance(self.reach, list) and len(self.reach) != len(tokens.shape):
            return f"has reach {self.reach} for {tokens.where}: one number for each dimension is needed"
        return None

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Structure:
        reach: tuple[int, ...] = ()
        if self.shifts:
            assert tokens.shape is not None
            wanted = self.reach if isinstance(self.reach, list) else [self.reach] * len(tokens.shape)
            farthest = [n - 1 for n in tokens.shape]  # more would find no key
            reach = tuple(
                far if own is None else min(own, far) for own, far in zip(wanted, farthest, strict=True)
            )
        heads = (self.attention_heads, self.shift_heads)
        return Structure(dim, tokens, *heads, reach, self.head_dim, self.every_shift, self.factored)
