"""Chunks for narrow operands: several blocks that read the same two strips of the grid, channel-major.

Rows of a few channels make slow products and slower element-wise work. Here tokens are columns: sources
are [C, N, B], a block's rows a run of columns, its products [D, C]·[C, n·B], and a sum over a head's
channels or a factor per head runs along all pairs. The strips are read once for all their blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid, Range
from models.ops.walk.rows import Rectangle, Side, Strip
from models.ops.walk.schedule import Schedule

SIDES: tuple[Side, Side] = ("query", "key")


class Run(NamedTuple):
    """The pairs [pair, pair + length) of a chunk: the entry that multiplies them, and the first of their
    tokens in the strip."""

    entry: int
    row: int
    pair: int
    length: int


class StripSide(NamedTuple):
    """What a chunk reads on one side: runs of a strip's tokens; `single` if one token is in all pairs."""

    strip: Strip
    runs: tuple[Run, ...]
    single: bool

    def columns(self, batch: int) -> list[tuple[int, int]]:
        """The first column and the number of columns of each run, `batch` columns a token."""
        return [(run.row * batch, run.length * batch) for run in self.runs]


class StripChunk:
    """Blocks whose `pairs` P follow each other.

    index   [P], (i − first)·N + j of each pair of tokens i, j
    """

    def __init__(self, blocks: Sequence[Block], grid: OffsetGrid, first: int) -> None:
        lengths = [block.pairs for block in blocks]
        starts = [stop - length for stop, length in zip(itertools.accumulate(lengths), lengths, strict=True)]
        self.pairs = sum(lengths)
        self.sides: dict[Side, StripSide] = {}
        for side in SIDES:
            rectangles = [block.queries if side == "query" else block.keys for block in blocks]
            single = rectangles[0] is None and self.pairs > 1
            rows = [0 if r is None else r[0][0] * _area(r[1:]) for r in rectangles]
            runs = map(Run, (block.entry for block in blocks), rows, starts, [1] if single else lengths)
            self.sides[side] = StripSide(Strip.around(rectangles[0], grid.shape), tuple(runs), single)
        tokens = torch.arange(grid.num_tokens)[int(grid.class_token) :].view(grid.shape)
        self.index = torch.cat(
            [(_of(tokens, b.queries) - first) * grid.num_tokens + _of(tokens, b.keys) for b in blocks]
        )


def _area(rectangle: Rectangle) -> int:
    size = 1
    for start, stop in rectangle:
        size *= stop - start
    return size


def _of(tokens: Tensor, rectangle: Rectangle | None) -> Tensor:
    if rectangle is None:
        return tokens.new_zeros(1)
    return tokens[tuple(slice(start, stop) for start, stop in rectangle)].flatten()


def strip_chunks(schedule: Schedule, queries: Range, first: int, largest: int) -> Iterator[StripChunk]:
    """The pairs of the queries with a first coordinate in a range, at most `largest` (or a block) at a time;
    the class token's query comes with the first range. `first` is the number of the first token."""
    parts = [_restricted(block, queries) for blocks in schedule.classes for block in blocks]
    blocks = sorted((part for part in parts if part is not None), key=_strips)
    for _, group in itertools.groupby(blocks, key=lambda block: _strips(block)[0]):
        run: list[Block] = []
        for block in group:
            if run and sum(b.pairs for b in run) + block.pairs > largest:
                yield StripChunk(run, schedule.grid, first)
                run = []
            run.append(block)
        yield StripChunk(run, schedule.grid, first)
    for block in schedule.special_blocks:
        if (part := _restricted(block, queries)) is not None:
            yield StripChunk([part], schedule.grid, first)


def _strips(block: Block) -> tuple:
    assert block.queries is not None
    assert block.keys is not None
    return (block.queries[1:], block.keys[1:]), block.queries[0][0] - block.keys[0][0]


def _restricted(block: Block, queries: Range) -> Block | None:
    """The block's pairs whose query has a first coordinate in the range."""
    if block.queries is None:
        return block if queries[0] == 0 else None
    (start, stop), *rest = block.queries
    first, last = max(start, queries[0]), min(stop, queries[1])
    if first >= last:
        return None
    keys = block.keys
    if keys is not None:
        shift = keys[0][0] - start
        keys = ((first + shift, last + shift), *keys[1:])
    return replace(block, queries=((first, last), *rest), keys=keys)
