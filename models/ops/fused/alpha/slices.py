"""Cuts an α-Translution pass into slices of queries and samples whose pair tensors fit the workspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.ops.device import device_type
from models.ops.fused.alpha.tables import MULTIPROCESSORS, PairTables, Side, pair_tables
from models.ops.fused.alpha.tiles import owner_tile
from models.ops.recipe import Recipe
from models.ops.walk.schedule import Schedule

WORKSPACE = 1 << 30  # bytes of pair tensors at a time, unless the recipe says
MOST_NUMBERS = 2**31 - 1  # of a tensor: kernels index in int32
PROGRAMS = 3 * MULTIPROCESSORS


class Slice(NamedTuple):
    """The queries first … first + queries of some samples."""

    first: int
    queries: int
    samples: slice
    tables: PairTables

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.queries)

    def steps(self, side: Side, rows: Tensor) -> list[Tensor]:
        """The tables of a kernel that owns the tokens of one side, for narrow rows [N, B, H·R]."""
        tile, batch = owner_tile(rows), rows.shape[1]
        samples = tile.samples(batch)
        width = tile.rows // samples
        owners = self.queries if side == "query" else rows.shape[0]
        programs = -(-owners // width) * -(-batch // samples)
        parts = min(8, -(-PROGRAMS // programs)) if device_type(rows.device) != "cpu" else 2
        return self.tables.steps(side, width, parts, rows.device)

    def runs(self, device: torch.device) -> list[Tensor]:
        return list(self.tables.runs(device)[:3])


def slices(recipe: Recipe, schedule: Schedule, rows: Tensor) -> Iterator[Slice]:
    """The slices of a pass over rows [N, B, …], each with its tables."""
    (N, B), H = rows.shape[:2], recipe.heads
    size = rows.element_size()
    row_bytes = N * H * max(8 + size, 4 + 3 * size)  # logits and dP in float32, dP − delta; then P and dS
    workspace = WORKSPACE if recipe.workspace is None else recipe.workspace
    fitting = max(1, min(workspace // row_bytes, MOST_NUMBERS // (N * H)))
    if fitting >= N:
        queries, samples = N, _even(B, fitting // N)
    else:
        samples = min(B, 8)
        queries = _even(N, max(16, fitting // samples))
    for first in range(0, N, queries):
        count = min(queries, N - first)
        tables = pair_tables(schedule, first, count)
        for start in range(0, B, samples):
            yield Slice(first, count, slice(start, min(B, start + samples)), tables)


def _even(whole: int, most: int) -> int:
    """The size of slices of `whole`, equal but for the last; a multiple of 16 if that is not above `most`."""
    size = -(-whole // -(-whole // most))
    rounded = -(-size // 16) * 16
    return rounded if rounded <= most and size < whole else size


class Sums:
    """Tensors of a pass, collected from its slices.

    overlap   slices may write the same places, so that parts are added up
    """

    def __init__(self, like: Sequence[Tensor], overlap: bool) -> None:
        self._like, self._overlap = like, overlap
        self._sums: list[Tensor | None] = [None] * len(like)

    def add(self, index: int, part: Tensor, *place: slice) -> None:
        """Puts a part at its place in tensor `index`; one that covers all becomes the tensor."""
        total, shape = self._sums[index], self._like[index].shape
        if total is None and part.shape == shape:
            self._sums[index] = part
            return
        if total is None:
            total = part.new_zeros(shape) if self._overlap else part.new_empty(shape)
            self._sums[index] = total
        if self._overlap:
            total[place] += part
        else:
            total[place] = part

    def finish(self) -> list[Tensor]:
        """The tensors; zeros where nothing was added."""
        return [
            torch.zeros_like(like, dtype=torch.float32) if total is None else total
            for like, total in zip(self._like, self._sums, strict=True)
        ]
