"""Visits the pairs by grouped products: all bank entries of a chunk of residue classes in one kernel.

Between the products stands one element-wise kernel each way (operators.py), so a chunk takes about six
launches forward and thirteen backward, whatever it holds. `grouped_mm` has kernels for bfloat16 on compute
capabilities 9 and 10; elsewhere it is a loop that waits for the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from models.ops.cards import capability_at
from models.ops.device import device_type
from models.ops.grouped.chunks import Budget, Chunk, plan, used_entries
from models.ops.grouped.operators import (
    grouped_gather,
    grouped_gradients,
    grouped_merge,
    grouped_scatter,
    grouped_sum_rows,
)
from models.ops.recipe import Operand, Recipe, workspace_bytes
from models.ops.walk.rows import Side
from models.ops.walk.schedule import Schedule

CAPABILITIES = (9, 10)  # compute capabilities for which grouped_mm has a kernel


class GroupedWalk:
    """A `Walk` for one query, key and value segment, in bfloat16."""

    @staticmethod
    def why_not(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> str | None:
        """The reason why this walk cannot serve these tensors; None if it can."""
        if len(recipe.logits) != 1 or len(recipe.values) != 1:
            return "grouped products do not know α-Translution"
        operands = _operands(recipe)
        if len({operand.source for operand in operands if operand.bank is not None}) != 1:
            return "grouped products need banks over one source"
        if any(bank.shape[1] % 8 or bank.shape[2] % 8 for bank in banks):
            return f"widths {tuple(banks[0].shape[1:])} are no multiples of 8"
        device = sources[0].device
        if device_type(device) == "cpu":
            interpreting = os.environ.get("TRITON_INTERPRET") == "1"
            return None if interpreting else "grouped products need a CUDA device"
        if sources[0].dtype != torch.bfloat16:
            return f"grouped products take bfloat16, not {str(sources[0].dtype).removeprefix('torch.')}"
        capability = capability_at(device)
        if capability is not None and capability[0] not in CAPABILITIES:
            own = ".".join(map(str, capability))
            return f"torch has grouped products for compute capabilities 9 and 10, this card has {own}"
        if device.type != "meta" and find_spec("triton") is None:
            return "triton is not installed"
        return None

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        v = recipe.values[0]
        N, B, H = *sources[0].shape[:2], recipe.heads
        width = sources[v.source].shape[2] if v.bank is None else banks[v.bank].shape[2]
        lse = sources[0].new_full((N, B, H), -torch.inf, dtype=torch.float32)
        out = sources[0].new_zeros((N, B, H, width // H), dtype=torch.float32)
        kept: list[Tensor] = []
        for step in _steps(recipe, schedule, sources, banks):
            kept += _Rows(recipe, step, sources).forward(lse, out)
        return lse, [out], kept

    @staticmethod
    def backward(
        recipe: Recipe,
        schedule: Schedule,
        sources: Sequence[Tensor],
        banks: Sequence[Tensor],
        kept: Sequence[Tensor],
        lse: Tensor,
        delta: Tensor,
        grads: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        totals = [torch.zeros(s.shape, dtype=torch.float32, device=s.device) for s in sources]
        grad_banks = [_gradient_of(bank, schedule) for bank in banks]
        state, saved = (lse, delta, grads[0].contiguous()), iter(kept)
        sums: list[Tensor] = []
        for step in _steps(recipe, schedule, sources, banks):
            rows = _Rows(recipe, step, sources)
            products = [next(saved) for _ in rows.sides] if recipe.keep else None
            new = rows.backward(products, state, totals)
            if step.start == 0:
                sums = new if step.whole else [product.float() for product in new]
            else:
                for total, product in zip(sums, new, strict=True):
                    total.add_(product)
            del rows, products, new  # before the next step makes its own
            if step.last:
                grouped_scatter(sums, step.chunk.entries, step.chunk.again, grad_banks)
                sums.clear()
        return totals, grad_banks


class _Step(NamedTuple):
    """Samples [start, start + samples) of a chunk, and its bank entries, packed [G, C, banks·D] in the order
    of the banks."""

    chunk: Chunk
    packed: Tensor
    start: int
    samples: int
    whole: bool
    last: bool


def _steps(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> Iterator[_Step]:
    batch, device, dtype = sources[0].shape[1], sources[0].device, sources[0].dtype
    _, C, D = banks[0].shape
    operands = _operands(recipe)
    widths = [sources[o.source].shape[2] if o.bank is None else banks[o.bank].shape[2] for o in operands]
    pair = (3 * C + (2 if recipe.keep else 1) * sum(widths)) * dtype.itemsize
    entry = C * D * len(banks) * (2 * dtype.itemsize + 4)
    workspace = workspace_bytes(recipe.workspace, device_type(device))
    chunks, samples = plan(schedule, batch, Budget(workspace, pair, entry), device)
    most = max(len(chunk.entries) for chunk in chunks)
    buffer = torch.empty((most, C, D * len(banks)), dtype=dtype, device=device)
    for chunk in chunks:
        packed = buffer[: len(chunk.entries)]
        grouped_gather(list(banks), chunk.entries, packed)
        for start in range(0, batch, samples):
            count = min(samples, batch - start)
            yield _Step(chunk, packed, start, count, count == batch, start + count == batch)


class _Rows:
    """The rows of a step that banks multiply, and their products.

    Banked operands of one side stand next to each other in the order of their banks, so that they are
    columns of one product.
    """

    def __init__(self, recipe: Recipe, step: _Step, sources: Sequence[Tensor]) -> None:
        self._recipe, self._step, self._sources = recipe, step, sources
        self._operands = _operands(recipe)
        self._by_pair = [operand.bank is not None for operand in self._operands]
        self._banked: dict[Side, list[int]] = {}  # the operands of each side, by number
        for number, (operand, side) in enumerate(zip(self._operands, _SIDES, strict=True)):
            if operand.bank is not None:
                self._banked.setdefault(side, []).append(number)
        self.sides = list(self._banked)
        self._source = next(operand.source for operand in self._operands if operand.bank is not None)
        self._stops = step.chunk.stops(step.samples)
        self._rows: dict[Side, Tensor] = {}

    def forward(self, lse: Tensor, out: Tensor) -> list[Tensor]:
        """Merges the step's pairs into lse and out; what backward is to be given if `recipe.keep`."""
        chunk, start, samples = self._step.chunk, self._step.start, self._step.samples
        products = self._project()
        first, pair = chunk.of["query"]
        where = (first, pair, chunk.token["key"], start, samples)
        grouped_merge(*self._parts(products), lse, out, *where, self._recipe.scale, self._by_pair)
        return products if self._recipe.keep else []

    def backward(
        self, products: list[Tensor] | None, state: tuple[Tensor, Tensor, Tensor], totals: Sequence[Tensor]
    ) -> list[Tensor]:
        """Adds the step's gradients to those of the sources, `totals`; returns those of the groups' entries
        [G, C, D], by bank. `products` are those that forward kept; `state` is lse, delta and ∂out."""
        chunk, start, samples = self._step.chunk, self._step.start, self._step.samples
        if products is None:
            targets = products = self._project()  # gradients overwrite products
        else:
            targets = [torch.empty_like(product) for product in products]
        gradients = self._parts(targets, new_rows=True)
        where = (chunk.token["query"], chunk.token["key"], start, samples)
        operands = self._parts(products)
        grouped_gradients(*operands, *gradients, *state, *where, self._recipe.scale, self._by_pair)
        for side, target in zip(self.sides, targets, strict=True):
            weights = self._columns(side).mT
            self._add(grouped_mm(target, weights, offs=self._stops), side, totals[self._source])
        for operand, side, gradient in zip(self._operands, _SIDES, gradients, strict=True):
            if operand.bank is None:
                self._add(gradient, side, totals[operand.source])
        return self._bank_gradients(targets)

    def _project(self) -> list[Tensor]:
        """The product [pairs·samples, ·] of each side."""
        return [grouped_mm(self._read(side), self._columns(side), offs=self._stops) for side in self.sides]

    def _parts(self, products: Sequence[Tensor], new_rows: bool = False) -> list[Tensor]:
        """For q, k and v: the columns of a product; where no bank multiplies, the source [N·B, D], or new
        rows [pairs·samples, D]."""
        rows = self._step.chunk.pairs * self._step.samples
        parts = []
        for number, (operand, side) in enumerate(zip(self._operands, _SIDES, strict=True)):
            source, numbers = self._sources[operand.source], self._banked.get(side, [])
            if operand.bank is not None:
                product = products[self.sides.index(side)]
                parts.append(product.chunk(len(numbers), 1)[numbers.index(number)])
            elif new_rows:
                parts.append(source.new_empty((rows, source.shape[2])))
            else:
                parts.append(source.flatten(0, 1))
        return parts

    def _add(self, rows: Tensor, side: Side, total: Tensor) -> None:
        """Adds the rows [pairs·samples, C] of one side to their tokens."""
        first, pair = self._step.chunk.of[side]
        grouped_sum_rows(rows, total, first, pair, self._step.start, self._step.samples)

    def _bank_gradients(self, targets: Sequence[Tensor]) -> list[Tensor]:
        """rowsᵀ·∂ of each group [G, C, D], in the order of the banks."""
        found: dict[int, Tensor] = {}
        for side, target in zip(self.sides, targets, strict=True):
            product = grouped_mm(self._read(side).t(), target, offs=self._stops)
            banks = self._banks(side)
            found |= zip(banks, product.chunk(len(banks), 2), strict=True)
        return [found[bank] for bank in range(len(found))]

    def _banks(self, side: Side) -> list[int]:
        banks = [self._operands[number].bank for number in self._banked[side]]
        return [bank for bank in banks if bank is not None]

    def _columns(self, side: Side) -> Tensor:
        """The entries [G, C, ·] that multiply the rows of this side."""
        packed, banks = self._step.packed, self._banks(side)
        width = packed.shape[2] // sum(map(len, self._banked.values()))
        return packed[:, :, banks[0] * width : (banks[0] + len(banks)) * width]

    def _read(self, side: Side) -> Tensor:
        if side not in self._rows:
            step = self._step
            x = self._sources[self._source][:, step.start : step.start + step.samples]
            self._rows[side] = x.index_select(0, step.chunk.token[side]).flatten(0, 1)
        return self._rows[side]


_SIDES: tuple[Side, Side, Side] = ("query", "key", "key")


def _operands(recipe: Recipe) -> tuple[Operand, Operand, Operand]:
    ((q, k),), (v,) = recipe.logits, recipe.values
    return q, k, v


def _gradient_of(bank: Tensor, schedule: Schedule) -> Tensor:
    """Memory for ∂bank, zero where no pair uses an entry."""
    gradient = torch.empty_like(bank, memory_format=torch.contiguous_format)
    used = used_entries(schedule)
    if len(used) < len(bank):
        unused = sorted(set(range(len(bank))) - used)
        gradient[torch.tensor(unused, device=bank.device)] = 0
    return gradient
