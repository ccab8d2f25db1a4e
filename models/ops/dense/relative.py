"""The relative part of a dense walk: projects the operands of some samples, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from models.offsets import OffsetGrid
from models.ops.dense.columns import Columns
from models.ops.dense.strips import StripChunk, StripSide
from models.ops.recipe import Operand, Recipe
from models.ops.walk.products import Bank
from models.ops.walk.rows import Side
from models.ops.walk.stage import Projected, Scratch


class Relative:
    """Operands [H, E, P·B] for the P pairs of a chunk, from sources [N, B, C] of some samples."""

    def __init__(
        self,
        recipe: Recipe,
        grid: OffsetGrid,
        sources: Sequence[Tensor],
        banks: Sequence[Bank],
        scratch: Scratch,
    ) -> None:
        self._heads, self._batch = recipe.heads, sources[0].shape[1]
        self._banks, self._scratch = banks, scratch
        used = {operand.source for operand, *_ in _operands(recipe)}
        self._sources = {i: sources[i].permute(2, 0, 1).contiguous() for i in sorted(used)}
        self._columns = Columns(self._sources, grid, scratch)

    def project(self, recipe: Recipe, chunk: StripChunk, kept: list[Tensor]) -> Projected:
        """q, k and v of the recipe's segments; in new memory, and appended to `kept`, if it keeps them."""
        projected = Projected([], [], [])
        for operand, side, kind, number in _operands(recipe):
            of_side = chunk.sides[side]
            columns = self._columns.of(operand.source, side, of_side.strip)
            if operand.bank is None:
                out = torch.cat([columns.narrow(1, *run) for run in of_side.columns(self._batch)], 1)
            else:
                bank = self._banks[operand.bank]
                rows = 1 if of_side.single else chunk.pairs
                shape = (bank.width, rows * self._batch)
                out = columns.new_empty(shape) if recipe.keep else self._scratch((kind, number), shape)
                bank.multiply_columns(columns, of_side.runs, self._batch, out)
            if of_side.single:
                out = out.unsqueeze(1).expand(-1, chunk.pairs, -1).flatten(1)
            projected["qkv".index(kind)].append(out.unflatten(0, (self._heads, -1)))
        if recipe.keep:
            kept += [t for segments in projected for t in segments]
        return projected

    def backpropagate(self, recipe: Recipe, chunk: StripChunk, grads: Projected, sums: Columns) -> None:
        """Adds the operands' gradients to those of the banks, and to `sums` of the sources."""
        for operand, side, kind, number in _operands(recipe):
            grad, of_side = grads["qkv".index(kind)][number].flatten(0, 1), chunk.sides[side]
            if of_side.single:
                grad = grad.unflatten(1, (chunk.pairs, -1)).sum(1)
            summed = sums.of(operand.source, side, of_side.strip)
            if operand.bank is None:
                _add_runs(summed, grad, of_side, self._batch)
                continue
            columns = self._columns.of(operand.source, side, of_side.strip)
            bank = self._banks[operand.bank]
            bank.backpropagate_columns(columns, grad, of_side.runs, self._batch, summed)

    def new_sums(self, dtype: torch.dtype) -> dict[int, Tensor]:
        """Zeros [C, N, B] for the gradient of each source that is used."""
        return {i: torch.zeros_like(source, dtype=dtype) for i, source in self._sources.items()}

    def add_to_queries(self, sums: Columns, number: int, chunk: StripChunk, pairs: Tensor) -> None:
        """Adds the pairs' [C, P·B] to what `sums` has of their queries."""
        side = chunk.sides["query"]
        if side.single:
            pairs = pairs.unflatten(1, (chunk.pairs, -1)).sum(1)
        _add_runs(sums.of(number, "query", side.strip), pairs, side, self._batch)

    def dots(self, a: Sequence[Tensor], b: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Σ ⟨a, b⟩ over the segments: [H, P, B]."""
        total = None
        for x, y in zip(a, b, strict=True):
            x, y = x.to(dtype), y.to(dtype)
            dot = torch.mul(x, y, out=self._scratch("a·b", tuple(x.shape), dtype)).sum(1)
            total = dot if total is None else total.add_(dot)
        assert total is not None
        return total.unflatten(1, (-1, self._batch))

    def times(self, a: Tensor, weight: Tensor, name: object) -> Tensor:
        """a[H, E, P·B] · weight[H, P, B], in the dtype of the weight."""
        weight = weight.flatten(1).unsqueeze(1)
        return torch.mul(a.to(weight.dtype), weight, out=self._scratch(name, tuple(a.shape), weight.dtype))


def at_queries(columns: Columns, number: int, chunk: StripChunk, batch: int) -> Tensor:
    """The columns [C, P·B] of the pairs' queries."""
    side = chunk.sides["query"]
    read = columns.of(number, "query", side.strip)
    rows = torch.cat([read.narrow(1, *run) for run in side.columns(batch)], 1)
    return rows.unsqueeze(1).expand(-1, chunk.pairs, -1).flatten(1) if side.single else rows


def _add_runs(summed: Tensor, pairs: Tensor, side: StripSide, batch: int) -> None:
    """Adds the pairs' columns [C, P·B] to those of their tokens [C, n·B]."""
    for (start, length), run in zip(side.columns(batch), side.runs, strict=True):
        summed.narrow(1, start, length).add_(pairs.narrow(1, run.pair * batch, length))


def take(recipe: Recipe, kept: Iterator[Tensor]) -> Projected:
    """What `project` has appended for one chunk."""
    counts = [0, 0, 0]
    for *_, kind, _ in _operands(recipe):
        counts["qkv".index(kind)] += 1
    return Projected(*(list(islice(kept, count)) for count in counts))


def _operands(recipe: Recipe) -> Iterator[tuple[Operand, Side, str, int]]:
    """Each operand with its side, whether it is q, k or v, and of which segment."""
    for i, (q, k) in enumerate(recipe.logits):
        yield q, "query", "q", i
        yield k, "key", "k", i
    for i, v in enumerate(recipe.values):
        yield v, "key", "v", i
