"""Index tables that the fused kernels walk over: every geometry is the same kernel with another table.

All pairs of a schedule are numbered. The numbering is cut into *chunks*; inside a chunk the pairs of one
bank entry are consecutive, a *run*. For products whose rows are tokens (a query with its keys, or a key
with its queries), P neighbouring tokens form a *group*, and a group has a list of *steps*: a run, and the
pair of each of its P tokens or −1. Groups take their steps in the same order, so that few bank entries are
in use at any time and stay in the second-level cache. Tables are int32 arrays on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from models.offsets import Block, OffsetGrid
from models.ops.walk.rows import Side
from models.ops.walk.schedule import Schedule


class Pairs(NamedTuple):
    """All pairs: query[pairs] and key[pairs] tokens; run r is the pairs run_start[r] … run_start[r + 1], of
    the bank entry run_entry[r]; run_again[r] is 1 if an earlier run, in another chunk, has this entry."""

    query: np.ndarray
    key: np.ndarray
    run_start: np.ndarray
    run_entry: np.ndarray
    run_again: np.ndarray


class Groups(NamedTuple):
    """Groups of P tokens: tokens[G, P] (−1 for none); in chunk c group g takes the steps bounds[c, g] …
    bounds[c + 1, g], each the run step_run[S] and the pairs step_pair[S, P] (−1 for none)."""

    tokens: np.ndarray
    bounds: np.ndarray
    step_run: np.ndarray
    step_pair: np.ndarray


class Tiles(NamedTuple):
    """Tiles of rows (pair, sample), each within one run: its run[T], and its first row[T] in the run."""

    run: np.ndarray
    first: np.ndarray


@dataclass(frozen=True, eq=False)
class PairOrder:
    """The numbering of a schedule's pairs.

    run         [pairs] the run of each pair
    step        per side: [pairs] numbers that are equal for pairs that one step may join
    chunk_pairs, chunk_runs   where each chunk begins, and the end
    """

    grid: OffsetGrid
    pairs: Pairs
    run: np.ndarray
    step: dict[Side, np.ndarray]
    chunk_pairs: tuple[int, ...]
    chunk_runs: tuple[int, ...]

    @property
    def spans_chunks(self) -> bool:
        """Whether a bank entry has runs in more than one chunk."""
        return bool(self.pairs.run_again.any())

    def groups(self, side: Side, size: int) -> tuple[Groups, tuple[int, ...]]:
        """Groups of up to `size` tokens of this side, those with most steps first; and how many steps all
        groups take before each chunk, and in the end."""
        tokens = group_tokens(self.grid, size)
        group, place = np.zeros((2, self.grid.num_tokens), dtype=np.int64)
        rows, columns = (tokens >= 0).nonzero()
        group[tokens[rows, columns]], place[tokens[rows, columns]] = rows, columns
        token = self.pairs.query if side == "query" else self.pairs.key
        stride = len(token) + 1
        steps, step_of_pair = np.unique(group[token] * stride + self.step[side], return_inverse=True)
        step_run = np.zeros(len(steps), dtype=np.int32)
        step_run[step_of_pair] = self.run
        step_pair = np.full((len(steps), size), -1, dtype=np.int32)
        step_pair[step_of_pair, place[token]] = np.arange(len(token))
        marks = np.arange(len(tokens))[None] * stride + np.array(self.chunk_pairs)[:, None]
        bounds = np.searchsorted(steps, marks)
        longest_first = np.argsort(bounds[0] - bounds[-1], kind="stable")
        taken = (bounds - bounds[0]).sum(1).tolist()
        bounds = bounds[:, longest_first].astype(np.int32)
        return Groups(tokens[longest_first].astype(np.int32), bounds, step_run, step_pair), tuple(taken)

    def tiles(self, rows: int, batch: int) -> tuple[Tiles, tuple[int, ...]]:
        """Tiles of `rows` rows, and where each chunk's begin, and the end."""
        counts = (np.diff(self.pairs.run_start.astype(np.int64)) * batch + rows - 1) // rows
        starts = np.concatenate([[0], counts.cumsum()])
        run = np.repeat(np.arange(len(counts)), counts)
        first = (np.arange(len(run)) - starts[run]) * rows
        begins = starts[list(self.chunk_runs)].tolist()
        return Tiles(run.astype(np.int32), first.astype(np.int32)), tuple(begins)


def order_pairs(schedule: Schedule, chunk_pairs: int, chunk_entries: int | None = None) -> PairOrder:
    """Numbers the pairs, with at most `chunk_pairs` of them and `chunk_entries` bank entries in a chunk, or
    one class (a causal sequence: one offset) where that has more."""
    return _order(schedule, max(1, chunk_pairs), chunk_entries)


@lru_cache(maxsize=64)
def _order(schedule: Schedule, chunk_pairs: int, chunk_entries: int | None) -> PairOrder:
    grid = schedule.grid
    positions = np.arange(grid.grid_tokens).reshape(grid.shape) + grid.class_token
    sides: dict[Side, list[np.ndarray]] = {"query": [], "key": []}
    steps: dict[Side, list[np.ndarray]] = {"query": [], "key": []}
    run_start, run_entry, run_again, chunk_pair_starts, chunk_run_starts = [], [], [], [], []
    seen: set[int] = set()
    count = 0
    for chunk in _chunks(_units(schedule), chunk_pairs, chunk_entries):
        chunk_pair_starts.append(count)
        chunk_run_starts.append(len(run_entry))
        for entry, blocks in chunk.items():
            run_start.append(count)
            run_entry.append(entry)
            run_again.append(entry in seen)
            for block in blocks:
                each = np.arange(count, count + block.pairs)
                for side in sides:
                    rectangle = block.queries if side == "query" else block.keys
                    tokens = _cut(positions, rectangle)
                    alone = rectangle is None  # the class token: one pair a step
                    sides[side].append(np.broadcast_to(tokens, block.pairs))
                    steps[side].append(each if alone else np.full_like(each, count))
                count += block.pairs
        seen.update(chunk)
    starts = np.array([*run_start, count], dtype=np.int32)
    query, key = (_join(tokens).astype(np.int32) for tokens in sides.values())
    entries, again = (np.array(numbers, dtype=np.int32) for numbers in (run_entry, run_again))
    return PairOrder(
        grid,
        Pairs(query, key, starts, entries, again),
        np.repeat(np.arange(len(run_entry)), np.diff(starts)),
        {side: _join(numbers) for side, numbers in steps.items()},
        (*chunk_pair_starts, count),
        (*chunk_run_starts, len(run_entry)),
    )


def _units(schedule: Schedule) -> list[tuple[Block, ...]]:
    """What is not divided between chunks, in the order all programs share: whole classes, so that all
    queries and all keys are in step; a causal sequence's offsets, nearest first, for the same reason."""
    specials = [(block,) for block in schedule.special_blocks]
    if not schedule.grid.causal:
        return [*schedule.classes, *specials]
    blocks = [block for blocks in schedule.classes for block in blocks]
    return [(block,) for block in sorted(blocks, key=lambda block: block.queries or ())] + specials


def _chunks(
    units: Sequence[tuple[Block, ...]], most_pairs: int, most_entries: int | None
) -> list[dict[int, list[Block]]]:
    """The blocks of each chunk by entry, in order of the entries' first appearance."""
    chunks: list[dict[int, list[Block]]] = []
    pairs = most_pairs
    for unit in units:
        size = sum(block.pairs for block in unit)
        held = chunks[-1].keys() if chunks else set()
        entries = len(held) + len({block.entry for block in unit} - held)
        if pairs + size > most_pairs or (most_entries is not None and entries > most_entries):
            chunks.append({})
            pairs = 0
        pairs += size
        for block in unit:
            chunks[-1].setdefault(block.entry, []).append(block)
    return chunks


def _cut(positions: np.ndarray, rectangle: tuple[tuple[int, int], ...] | None) -> np.ndarray:
    if rectangle is None:
        return np.zeros(1, dtype=np.int64)
    return positions[tuple(slice(start, stop) for start, stop in rectangle)].flatten()


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def group_tokens(grid: OffsetGrid, size: int) -> np.ndarray:
    """tokens[G, size]: rectangles of the grid, then the class token by itself; −1 where there is none."""
    sides = group_shape(grid.shape, size)
    padded = [math.ceil(n / side) * side for n, side in zip(grid.shape, sides, strict=True)]
    tokens = np.full(padded, -1)
    inside = tuple(slice(n) for n in grid.shape)
    tokens[inside] = np.arange(grid.grid_tokens).reshape(grid.shape) + grid.class_token
    split = [length for n, side in zip(padded, sides, strict=True) for length in (n // side, side)]
    outer = range(0, len(split), 2)
    tokens = tokens.reshape(split).transpose(*outer, *(d + 1 for d in outer)).reshape(-1, math.prod(sides))
    table = np.full((len(tokens) + grid.class_token, size), -1)
    table[: len(tokens), : tokens.shape[1]] = tokens
    if grid.class_token:
        table[-1, 0] = 0
    return table


def mean_steps(shape: tuple[int, ...], sides: tuple[int, ...]) -> float:
    """Steps of a class on a grid of this shape, in rectangles of these sides, on average: the seams of the
    class divide the groups that lie across them."""
    groups = [math.ceil(n / side) for n, side in zip(shape, sides, strict=True)]
    return math.prod(g + (n - g) / n for g, n in zip(groups, shape, strict=True))


@lru_cache
def group_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The rectangle of at most `size` tokens with the fewest steps."""
    powers = [1 << p for p in range(size.bit_length())]
    candidates = [s for s in product(powers, repeat=len(shape)) if math.prod(s) <= size]
    return min(candidates, key=lambda sides: mean_steps(shape, sides))
