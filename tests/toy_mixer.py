"""A mixer and a reduction that live in the tests only, as a user's own would in a package of theirs."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.interface import Axes, Mixer, MixerConfig
from models.offsets import OffsetGrid
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.schedule import whole_schedule
from models.positions.interface import PositionConfig
from models.reducers.interface import Reducer, ReducerConfig
from models.tokens import TokenGrid


class RelativeValues(Mixer):
    """Attention with one bank, of values; no formulas for its cost."""

    def __init__(self, dim: int, grid: OffsetGrid, heads: int, head_dim: int) -> None:
        super().__init__(dim, grid.num_tokens)
        self.heads = heads
        self.qk = nn.Linear(dim, heads * head_dim)
        self.bank = nn.Parameter(
            nn.init.normal_(self.qk.weight.new_empty(grid.num_entries, dim, heads * head_dim))
        )
        self.out = nn.Linear(heads * head_dim, dim)
        self.schedule = whole_schedule(grid)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_NBC = self.head_input(x_BNC).transpose(0, 1).contiguous()
        qk_NBD = self.qk(x_NBC)
        recipe = Recipe(((Operand(1), Operand(1)),), (Operand(0, 0),), self.heads, 0.5)
        assert self.schedule is not None
        (out_NBD,) = streamed(recipe, self.schedule, [x_NBC, qk_NBD], [self.bank], self.combine)
        return self.out(out_NBD).transpose(0, 1)

    def axes(self) -> Axes:
        return {
            "qk.weight": {0: "head"},
            "qk.bias": {0: "head"},
            "bank": {0: "entry", 2: "head"},
            "out.weight": {1: "head"},
        }

    def draws(self) -> dict[str, Draw]:
        return {"bank": Draw(std=0.1)}


class RelativeValuesConfig(MixerConfig):
    title: ClassVar[str] = "Relative values"
    causal: ClassVar[bool] = True

    heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=8, ge=1)

    def knows_positions(self) -> bool:
        return True

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> RelativeValues:
        return RelativeValues(dim, tokens.offsets(), self.heads, self.head_dim)


class PeekingConfig(RelativeValuesConfig):
    """Builds a mixer whose cost cannot be known without running it on values."""

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> RelativeValues:
        return Peeking(dim, tokens.offsets(), self.heads, self.head_dim)


class Peeking(RelativeValues):
    def forward(self, x_BNC: Tensor) -> Tensor:
        return super().forward(x_BNC) * (1.0 if x_BNC.mean().item() < 1e9 else 0.5)


class NoConfig:
    """Not a mixer's config."""


class EverySecond(Reducer):
    """Keeps the class token and every second of the other tokens."""

    def __init__(self, dim: int, tokens: TokenGrid) -> None:
        super().__init__(dim, tokens.num_tokens)
        self._first = int(tokens.class_token)

    def forward(self, x_BNC: Tensor) -> Tensor:
        kept = list(range(self._first)) + list(range(self._first, x_BNC.shape[1], 2))
        return x_BNC[:, kept]


class EverySecondConfig(ReducerConfig):
    def after(self, tokens: TokenGrid) -> TokenGrid:
        left = -(-(tokens.num_tokens - tokens.class_token) // 2)
        return TokenGrid(None, tokens.causal, tokens.class_token, left)

    def build(self, dim: int, tokens: TokenGrid) -> EverySecond:
        return EverySecond(dim, tokens)


class Mean(Mixer):
    """The mean of all tokens, through a matrix; it declares nothing."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__(dim, num_tokens)
        self.project = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.project(x_BNC).mean(1, keepdim=True).expand_as(x_BNC)


class MeanConfig(MixerConfig):
    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Mean:
        return Mean(dim, tokens.num_tokens)


class Shift(Mixer):
    """Every token takes the one before it: a mixer without a parameter."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.roll(1, 1)


class ShiftConfig(MixerConfig):
    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Shift:
        return Shift(dim, tokens.num_tokens)


class Tied(Mixer):
    """Two linear layers with one weight, and a frozen bias."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__(dim, num_tokens)
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.second(self.first(x_BNC).mean(1, keepdim=True)).expand_as(x_BNC)


class TiedConfig(MixerConfig):
    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Tied:
        return Tied(dim, tokens.num_tokens)


class BrokenConfig(MixerConfig):
    """Builds a mixer that breaks the rule that `how` names."""

    how: str

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Mixer:
        if self.how == "no mixer":
            return nn.Linear(dim, dim)  # pyright: ignore[reportReturnType]
        mixer = Broken(dim, tokens.num_tokens)
        mixer.how = self.how
        if self.how == "buffer":
            mixer.register_buffer("mask", torch.zeros(1))
        if self.how == "no draw":
            mixer.scale = nn.Parameter(torch.ones(1))
        return mixer


class Broken(Tied):
    how = ""

    def axes(self) -> Axes:
        wrong: dict[str, Axes] = {
            "missing": {"third.weight": {0: "head"}},
            "axis": {"first.weight": {0: "heads"}},  # pyright: ignore[reportAssignmentType]
            "dimension": {"first.bias": {1: "head"}},
            "entry": {"first.weight": {1: "entry"}},
        }
        return wrong.get(self.how, {})


class LyingConfig(EverySecondConfig):
    """Says that it keeps fewer tokens than it does."""

    def after(self, tokens: TokenGrid) -> TokenGrid:
        return TokenGrid(None, tokens.causal, tokens.class_token, 2)


class FromFileConfig(RelativeValuesConfig):
    """Builds a mixer from a file."""

    file: str = "table.npy"

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> RelativeValues:
        with open(self.file, "rb"):
            return super().build(dim, tokens, position)
