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

from models.ops.cards import card_at
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
from models.ops.walk.schedule import Schedule, device_type

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
        if device.type == "cpu":
            interpreting = os.environ.get("TRITON_INTERPRET") == "1"
            return None if interpreting else "grouped products need a CUDA device"
        if sources[0].dtype != torch.bfloat16:
            return f"grouped products take bfloat16, not {str(sources[0].dtype).removeprefix('torch.')}"
        card = card_at(device)
        if card is not None and card.capability[0] not in CAPABILITIES:
            return f"torch has no grouped products for {card.name}, only for capabilities 9 and 10"
        if device.type == "cuda" and find_spec("triton") is None:
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
            chunk, rows = step.chunk, _Rows(recipe, step, sources)
            products = rows.project(step.packed)
            if recipe.keep:
                kept += products
            first, pair = chunk.of["query"]
            key, start, samples = chunk.token["key"], step.start, step.samples
            operands, own = rows.operands(products), rows.by_pair
            grouped_merge(*operands, lse, out, first, pair, key, start, samples, recipe.scale, own)
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
        grad_out, saved = grads[0].contiguous(), iter(kept)
        sums: list[Tensor] | None = None
        for step in _steps(recipe, schedule, sources, banks):
            chunk, rows = step.chunk, _Rows(recipe, step, sources)
            if recipe.keep:
                products = [next(saved) for _ in rows.sides]
                targets = [torch.empty_like(product) for product in products]
            else:
                targets = products = rows.project(step.packed)
            operands, gradients = rows.operands(products), rows.gradients(targets)
            query, key = chunk.token["query"], chunk.token["key"]
            tail = (query, key, step.start, step.samples, recipe.scale, rows.by_pair)
            grouped_gradients(*operands, *gradients, lse, delta, grad_out, *tail)
            for source, side, gradient in rows.backpropagate(targets, gradients, step.packed):
                at, total = chunk.of[side], totals[source]
                grouped_sum_rows(gradient, total, at.first, at.pair, step.start, step.samples)
            new = rows.bank_gradients(targets, len(banks))
            if step.whole:
                grouped_scatter(new, chunk.entries, chunk.again, grad_banks)
                continue
            if step.start == 0:
                sums = [product.float() for product in new]
            else:
                assert sums is not None
                for total, product in zip(sums, new, strict=True):
                    total.add_(product)
            if step.last:
                assert sums is not None
                grouped_scatter(sums, chunk.entries, chunk.again, grad_banks)
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
    for chunk in chunks:
        packed = torch.empty((len(chunk.entries), C, D * len(banks)), dtype=dtype, device=device)
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
        self._step, self._sources = step, sources
        self._operands = _operands(recipe)
        self.by_pair = [operand.bank is not None for operand in self._operands]
        self._banked: dict[Side, list[int]] = {}  # the operands of each side, by number
        for number, (operand, side) in enumerate(zip(self._operands, _SIDES, strict=True)):
            if operand.bank is not None:
                self._banked.setdefault(side, []).append(number)
        self.sides = list(self._banked)
        self._source = next(operand.source for operand in self._operands if operand.bank is not None)
        self._rows: dict[Side, Tensor] = {}

    def project(self, packed: Tensor) -> list[Tensor]:
        """The product [pairs·samples, ·] of each side."""
        stops = self._step.chunk.stops(self._step.samples)
        return [grouped_mm(self._read(side), self._columns(side, packed), offs=stops) for side in self.sides]

    def operands(self, products: Sequence[Tensor]) -> list[Tensor]:
        """q, k and v: columns of a product, or the source [N·B, D] of one that no bank multiplies."""
        return [
            self._cut(number, products) if own else self._sources[operand.source].flatten(0, 1)
            for number, (operand, own) in enumerate(zip(self._operands, self.by_pair, strict=True))
        ]

    def gradients(self, targets: Sequence[Tensor]) -> list[Tensor]:
        """Where ∂q, ∂k and ∂v go: columns of `targets`, or new rows [pairs·samples, D]."""
        rows = self._step.chunk.pairs * self._step.samples
        return [
            self._cut(number, targets)
            if own
            else targets[0].new_empty((rows, self._sources[operand.source].shape[2]))
            for number, (operand, own) in enumerate(zip(self._operands, self.by_pair, strict=True))
        ]

    def backpropagate(
        self, targets: Sequence[Tensor], gradients: Sequence[Tensor], packed: Tensor
    ) -> Iterator[tuple[int, Side, Tensor]]:
        """The sources with the gradients of their rows [pairs·samples, C] on either side."""
        stops = self._step.chunk.stops(self._step.samples)
        for side, target in zip(self.sides, targets, strict=True):
            yield self._source, side, grouped_mm(target, self._columns(side, packed).mT, offs=stops)
        for operand, side, gradient in zip(self._operands, _SIDES, gradients, strict=True):
            if operand.bank is None:
                yield operand.source, side, gradient

    def bank_gradients(self, targets: Sequence[Tensor], banks: int) -> list[Tensor]:
        """rowsᵀ·∂ of each group [G, C, D], in the order of the banks."""
        stops = self._step.chunk.stops(self._step.samples)
        found: dict[int, Tensor] = {}
        for side, target in zip(self.sides, targets, strict=True):
            product = grouped_mm(self._read(side).t(), target, offs=stops)
            numbers = self._banked[side]
            for number, part in zip(numbers, product.chunk(len(numbers), 2), strict=True):
                bank = self._operands[number].bank
                assert bank is not None
                found[bank] = part
        return [found[bank] for bank in range(banks)]

    def _read(self, side: Side) -> Tensor:
        if side not in self._rows:
            step = self._step
            x = self._sources[self._source][:, step.start : step.start + step.samples]
            self._rows[side] = x.index_select(0, step.chunk.token[side]).flatten(0, 1)
        return self._rows[side]

    def _columns(self, side: Side, packed: Tensor) -> Tensor:
        places = [self._operands[number].bank for number in self._banked[side]]
        banks = [place for place in places if place is not None]
        width = packed.shape[2] // sum(map(len, self._banked.values()))
        return packed[:, :, banks[0] * width : (banks[0] + len(banks)) * width]

    def _cut(self, number: int, products: Sequence[Tensor]) -> Tensor:
        side = _SIDES[number]
        product, numbers = products[self.sides.index(side)], self._banked[side]
        return product.chunk(len(numbers), 1)[numbers.index(number)]


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
