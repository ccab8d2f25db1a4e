"""Translution and α-Translution as one layer: banks of projections, a matrix per relative offset."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.offsets import OffsetGrid
from models.ops.schedule import whole_plan
from models.ops.streamed import Combine, Operand, Recipe, streamed
from models.positions.rope import Rope

RELATIVE = ("q", "k", "v", "qk", "qv", "kv", "qkv")


class Translution(nn.Module):
    """x[B, N, C] → [B, N, C] with one projection matrix per relative offset.

    dim        C
    grid       the offsets; N is grid.num_tokens, K its entries
    heads, head_dim   H and E; the inner width is D = H·E
    relative   which of the query, key and value projections depend on the offset
    rank       None: full Translution, a bank [K, C, D] for each relative projection and one matrix
               [C, D] for each other. R: α-Translution, a dense attention path plus a relative path of
               R dimensions a head, banks [K, H·R, H·R]; both paths' logits and outputs are averaged
    rope       rotate the shared queries and keys by position; only with relative="v"
    init       "linear": every matrix as nn.Linear draws it. "reference": banks as the public code
               draws them, within ±1/√(C·D)
    memory     "recompute" saves nothing per pair; "keep" saves q, k and v of all pairs for backward
    workspace  cap in bytes on the operator's temporaries
    compiled   fuse the element-wise stage with torch.compile

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
        rope: bool = False,
        init: str = "linear",
        memory: str = "recompute",
        workspace: int = 64 << 20,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if relative not in RELATIVE:
            raise ValueError(f"relative {relative!r}: one of {', '.join(RELATIVE)} is needed")
        if rank is not None and rank < 1:
            raise ValueError(f"rank {rank}: a positive number is needed, or none for full Translution")
        if rope and relative != "v":
            raise ValueError(
                f"rope with relative {relative!r}: it turns shared queries and keys, so only 'v' fits"
            )
        if init not in ("linear", "reference"):
            raise ValueError(f"init {init!r}: linear or reference is needed")
        if memory not in ("recompute", "keep"):
            raise ValueError(f"memory {memory!r}: recompute or keep is needed")
        self.dim, self.grid, self.heads, self.head_dim = dim, grid, heads, head_dim
        self.relative, self.rank, self.init = relative, rank, init
        self.rope = Rope(grid, head_dim) if rope else None
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
        self.recipe = self._recipe(memory == "keep", workspace, compiled)
        self.plan = whole_plan(grid)
        self.combine: Combine | None = None
        self.enter = nn.Identity()  # stands where the heads part; parallel/ sums their gradients here
        self.reset_banks()

    @property
    def _narrow(self) -> str:
        """Which projections have a part in α-Translution's relative path."""
        logits = "qk" if "q" in self.relative or "k" in self.relative else ""
        return logits + ("v" if "v" in self.relative else "")

    def _recipe(self, keep: bool, workspace: int, compiled: bool) -> Recipe:
        """The operator's wiring; `_sources` gives the sources in the order numbered here."""
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
        return Recipe(logits, values, self.heads, scale, keep, workspace, compiled)

    def _sources(self, x_NBC: Tensor) -> list[Tensor]:
        entered = self.enter(x_NBC)
        shared = [self._shared(name, entered) for name in "qkv" if hasattr(self, name)]
        if self.rank is None:
            return [entered, *shared]
        return shared + [self.enter(self.get_submodule(f"{name}_down")(x_NBC)) for name in self._narrow]

    def _shared(self, name: str, x_NBC: Tensor) -> Tensor:
        projected = self.get_submodule(name)(x_NBC)
        if self.rope is None or name == "v":
            return projected
        return self.rope(projected.unflatten(-1, (-1, self.head_dim))).flatten(2)

    def bank_bound(self, bank: Tensor) -> float:
        """A bank's initial numbers are drawn uniformly within plus and minus this."""
        fan_in = bank.shape[1] if self.init == "linear" else bank.shape[1] * bank.shape[2]
        return 1 / math.sqrt(fan_in)

    def reset_banks(self) -> None:
        for name in self.relative:
            bank = self.get_parameter(f"{name}_bank")
            nn.init.uniform_(bank, -self.bank_bound(bank), self.bank_bound(bank))

    def forward(self, x_BNC: Tensor) -> Tensor:
        if x_BNC.dim() != 3 or x_BNC.shape[1:] != (self.grid.num_tokens, self.dim):
            raise ValueError(
                f"x of shape {tuple(x_BNC.shape)}: [batch, {self.grid.num_tokens}, {self.dim}] is needed"
            )
        x_NBC = x_BNC.transpose(0, 1).contiguous()  # rows of a rectangle are then long contiguous runs
        banks = [self.get_parameter(f"{name}_bank") for name in self.relative]
        outs = streamed(self.recipe, self.plan, self._sources(x_NBC), banks, self.combine)
        out_NBD = outs[0] if len(outs) == 1 else (outs[0] + self.v_up(outs[1])) / 2
        return self.out(out_NBD).transpose(0, 1)


class TranslutionConfig(BaseModel):
    """The `mixer` section for Translution; `Translution` and `OffsetGrid` say what each key means."""

    model_config = ConfigDict(extra="forbid")

    title: ClassVar[str] = "Translution"
    kind: Literal["translution"] = "translution"
    heads: int = Field(default=3, ge=1)
    head_dim: int = Field(default=64, ge=1)
    relative: Literal["q", "k", "v", "qk", "qv", "kv", "qkv"] = "qkv"
    rank: int | None = Field(default=None, ge=1)
    rope: bool = False
    share: str = Field(default="none", pattern=r"^(none|log|clip\(\d+\))$")
    init: Literal["linear", "reference"] = "linear"
    memory: Literal["recompute", "keep"] = "recompute"
    workspace: int = Field(default=64 << 20, ge=1)
    compiled: bool = False

    def knows_positions(self) -> bool:
        """Whether the net needs no position embeddings beside this mixer."""
        return True

    def build(self, dim: int, shape: tuple[int, ...], causal: bool, class_token: bool) -> Translution:
        options = self.model_dump(exclude={"kind", "share"})
        return Translution(dim, OffsetGrid(shape, causal, class_token, self.share), **options)
