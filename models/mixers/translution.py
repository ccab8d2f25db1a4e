"""Translution and α-Translution: banks of projections with one matrix per relative offset."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.interface import Axes, Mixer, MixerConfig
from models.mixers.joined import average, project
from models.mixers.translution_cost import translution_cost
from models.offsets import OffsetGrid
from models.ops.recipe import Kernel, Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.schedule import Schedule, whole_schedule
from models.positions.interface import PositionConfig
from models.positions.learned import NoPosition
from models.sharing import Share
from models.tokens import TokenGrid

RELATIVE = ("q", "k", "v", "qk", "qv", "kv", "qkv")


class Translution(Mixer):
    """x[B, N, C] → [B, N, C] with one projection matrix per relative offset.

    dim        C
    grid       the offsets; N is grid.num_tokens, K its entries
    heads, head_dim   H and E; the inner width is D = H·E
    relative   which of the query, key and value projections depend on the offset
    rank       None: full Translution, a bank [K, C, D] for each relative projection and one matrix
               [C, D] for each other. R: α-Translution, a dense attention path plus a relative path of
               R dimensions a head, banks [K, H·R, H·R]; both paths' logits and outputs are averaged
    position   may rotate the shared queries and keys; only with relative="v"
    init       "linear": every matrix as nn.Linear draws it. "reference": banks as the public code
               draws them, within ±1/√(C·D)
    memory     "recompute" saves nothing per pair; "keep" saves q, k and v of all pairs for backward
    workspace  limit in bytes of the operator's temporaries; None: 64 MiB on the CPU, 1 GiB on a card
    compiled   fuse the element-wise stage with torch.compile
    kernel     "loop" of plain products, "grouped" products or "fused" kernels (both CUDA only), or "auto"

    Raises ValueError for a variant that makes no sense and for x of the wrong length or width.
    Source: arXiv 2510.10060, sections 3 (full) and 3.3 (α).
    """

    def __init__(
        self,
        dim: int,
        grid: OffsetGrid,
        heads: int,
        head_dim: int = 64,
        relative: str = "qkv",
        rank: int | None = None,
        position: PositionConfig | None = None,
        init: str = "linear",
        memory: str = "recompute",
        workspace: int | None = None,
        compiled: bool = False,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__(dim, grid.num_tokens)
        position = position or NoPosition()
        if relative not in RELATIVE:
            raise ValueError(f"relative {relative!r}: one of {', '.join(RELATIVE)} is needed")
        if rank is not None and rank < 1:
            raise ValueError(f"rank {rank}: a positive number is needed, or none for full Translution")
        if position.inside_mixer and relative != "v":
            raise ValueError(f"position {position.kind} with relative {relative!r}: shared q and k need 'v'")
        if init not in ("linear", "reference"):
            raise ValueError(f"init {init!r}: linear or reference is needed")
        if memory not in ("recompute", "keep"):
            raise ValueError(f"memory {memory!r}: recompute or keep is needed")
        self.grid, self.heads, self.head_dim = grid, heads, head_dim
        self.relative, self.rank, self.init = relative, rank, init
        self.rotation = position.rotation(grid, head_dim) if position.inside_mixer else None
        inner, narrow = heads * head_dim, heads * (rank or 0)
        for name in "qkv":
            if rank is not None or name not in relative:
                self.add_module(name, nn.Linear(dim, inner, bias=False))
            if rank is not None and name in self._narrow:
                self.add_module(f"{name}_down", nn.Linear(dim, narrow, bias=False))
            if name in relative:
                shape = (grid.num_entries, dim, inner) if rank is None else (grid.num_entries, narrow, narrow)
                self.register_parameter(f"{name}_bank", nn.Parameter(torch.empty(shape)))
        if rank is not None and "v" in relative:
            self.v_up = nn.Linear(narrow, inner, bias=False)
        self.out = nn.Linear(inner, dim)
        self._recipe = self._build_recipe(heads, memory == "keep", workspace, compiled, kernel)
        multiplied, attended = (dim, inner) if rank is None else (narrow, inner + narrow)
        row_work = multiplied * (inner if rank is None else narrow) / (2 * attended)
        self.schedule: Schedule = whole_schedule(grid, row_work, kernel != "grouped")  # pyright: ignore[reportIncompatibleVariableOverride]
        self.reset_banks()

    @property
    def recipe(self) -> Recipe:
        """What the operator computes, for the heads that are here."""
        return replace(self._recipe, heads=self.heads)

    @property
    def _narrow(self) -> str:
        """The projections in α-Translution's relative path."""
        logits = "qk" if "q" in self.relative or "k" in self.relative else ""
        return logits + ("v" if "v" in self.relative else "")

    def _build_recipe(
        self, heads: int, keep: bool, workspace: int | None, compiled: bool, kernel: Kernel
    ) -> Recipe:
        """The operator's recipe; numbers sources in the order of `_sources`."""
        bank = {name: index for index, name in enumerate(self.relative)}
        if self.rank is None:
            shared = [name for name in "qkv" if name not in self.relative]
            q, k, v = (
                Operand(0, bank[name]) if name in bank else Operand(1 + shared.index(name)) for name in "qkv"
            )
            logits, values, scale = ((q, k),), (v,), 1.0
        else:
            narrow = {name: Operand(3 + i, bank.get(name)) for i, name in enumerate(self._narrow)}
            logits, values, scale = ((Operand(0), Operand(1)),), (Operand(2),), 1.0
            if "q" in narrow:
                logits, scale = (*logits, (narrow["q"], narrow["k"])), 0.5
            if "v" in narrow:
                values = (*values, narrow["v"])
        scale /= math.sqrt(self.head_dim)
        return Recipe(logits, values, heads, scale, keep, workspace, compiled, kernel)

    def _sources(self, x_NBC: Tensor) -> list[Tensor]:
        x_heads = self.head_input(x_NBC)
        names = [name for name in "qkv" if hasattr(self, name)]
        layers = [self.get_submodule(name) for name in names]
        downs = [self.get_submodule(f"{name}_down") for name in self._narrow] if self.rank else []
        if isinstance(self.head_input, nn.Identity):
            projected = project(x_heads, [*layers, *downs])
        else:  # the narrow rows are those of all heads
            projected = project(x_heads, layers) + project(x_NBC, downs)
        shared = [self._rotated(name, rows) for name, rows in zip(names, projected, strict=False)]
        if self.rank is None:
            return [x_heads, *shared]
        return shared + [self.head_input(rows) for rows in projected[len(names) :]]

    def _rotated(self, name: str, projected: Tensor) -> Tensor:
        if self.rotation is None or name == "v":
            return projected
        return self.rotation(projected.unflatten(-1, (-1, self.head_dim))).flatten(2)

    def bank_bound(self, bank: Tensor) -> float:
        """Half-width of the uniform initialisation."""
        fan_in = bank.shape[1] if self.init == "linear" else bank.shape[1] * bank.shape[2]
        return 1 / math.sqrt(fan_in)

    def reset_banks(self) -> None:
        for name in self.relative:
            bank = self.get_parameter(f"{name}_bank")
            nn.init.uniform_(bank, -self.bank_bound(bank), self.bank_bound(bank))

    def forward(self, x_BNC: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if x_BNC.dim() != 3 or x_BNC.shape[1:] != (self.grid.num_tokens, self.dim):
            raise ValueError(
                f"x of shape {tuple(x_BNC.shape)}: [batch, {self.grid.num_tokens}, {self.dim}] is needed"
            )
        x_NBC = x_BNC.transpose(0, 1).contiguous()  # so that a rectangle's rows are long contiguous runs
        banks = [self.get_parameter(f"{name}_bank") for name in self.relative]
        sources = self._sources(x_NBC)
        outs = streamed(self.recipe, self.schedule, sources, banks, self.combine, self.importance)
        read_NBH = outs.pop() if self.importance else None
        out_NBD = outs[0] if len(outs) == 1 else average(outs[0], outs[1], self.v_up)
        y_BNC = self.out(out_NBD).transpose(0, 1)
        if read_NBH is None:
            return y_BNC
        return y_BNC, self.head_mean(read_NBH, 2).T[:, int(self.grid.class_token) :]

    def axes(self) -> Axes:
        declared: Axes = {"out.weight": {1: "head"}}
        for name in "qkv":
            if name in self.relative:
                declared[f"{name}_bank"] = {0: "entry", 2: "head"}
            if hasattr(self, name):
                declared[f"{name}.weight"] = {0: "head"}
        if hasattr(self, "v_up"):
            declared["v_up.weight"] = {0: "head", 1: "head"}
        return declared

    def draws(self) -> dict[str, Draw]:
        names = [f"{name}_bank" for name in self.relative]
        return {name: Draw(bound=self.bank_bound(self.get_parameter(name))) for name in names}

    def cost(self, load: Load) -> Cost:
        return translution_cost(self, load)


class TranslutionConfig(MixerConfig):
    """The `mixer` section for Translution; `Translution` and `OffsetGrid` say what each key means."""

    title: ClassVar[str] = "Translution"
    causal: ClassVar[bool] = True
    ranks: ClassVar[bool] = True

    kind: Literal["translution"] = "translution"
    heads: int = Field(default=3, ge=1)
    head_dim: int = Field(default=64, ge=1)
    relative: Literal["q", "k", "v", "qk", "qv", "kv", "qkv"] = "qkv"
    rank: int | None = Field(default=None, ge=1)
    share: Share = "none"
    init: Literal["linear", "reference"] = "linear"
    memory: Literal["recompute", "keep"] = "recompute"
    workspace: int | None = Field(default=None, ge=1)
    compiled: bool = False
    kernel: Kernel = "auto"

    def knows_positions(self) -> bool:
        return True

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        if tokens.shape is None:
            return "knows offsets on a grid, and a `reduce` of an earlier stage broke it"
        return super().refuses_tokens(tokens)

    def refuses(self, position: PositionConfig) -> str | None:
        if not position.rotates:
            return "it acts on logits; translution's shared queries and keys can only be rotated"
        if self.relative == "v":
            return None
        return f"it rotates shared queries and keys; mixer.relative={self.relative}, only v fits"

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Translution:
        options = self.model_dump(exclude={"kind", "share"})
        return Translution(dim, tokens.offsets(self.share), **options, position=position)
