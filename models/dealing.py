"""Deals the pairs of a schedule into parts of equal work, each with the bank entries it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from models.offsets import Block, Range
from models.ops.walk.schedule import Schedule

T = TypeVar("T")

WORTH_A_WHOLE_BANK = 0.9  # of the work of the busiest part, for every part to hold all entries


@dataclass(frozen=True)
class Share:
    """One part: its blocks, and the bank entries it holds (None: all of them)."""

    classes: tuple[tuple[Block, ...], ...]
    special_blocks: tuple[Block, ...]
    entries: tuple[int, ...] | None

    @property
    def blocks(self) -> list[Block]:
        return [block for blocks in (*self.classes, self.special_blocks) for block in blocks]

    @property
    def pairs(self) -> int:
        return sum(block.pairs for block in self.blocks)

    def schedule(self, whole: Schedule) -> Schedule:
        """The schedule of this part of a whole one."""
        local = None if self.entries is None else {entry: i for i, entry in enumerate(self.entries)}
        return Schedule(whole.grid, self.classes, self.special_blocks, local, whole.row_work)


@lru_cache(maxsize=64)
def deal(schedule: Schedule, parts: int) -> list[Share]:
    """Deals residue classes: pairs are equal, and then bank entries, to within one class; the class token's
    blocks go where there is least to do.

    Blocks with a band differ in work, and are dealt one by one. If there are too few for that, they are
    divided, and every part holds all entries. Raises ValueError where some part would have nothing.
    """
    if schedule.in_bands:
        return _deal_bands(schedule, parts)
    if parts > len(schedule.classes):
        raise ValueError(
            f"more than the {len(schedule.classes)} residue classes of a grid of {schedule.grid.shape}"
        )
    classes = sorted(schedule.classes, key=lambda blocks: (-_pairs(blocks), -len(blocks)))
    dealt = _greedily(classes, parts, lambda blocks: (_pairs(blocks), len(blocks)))
    loads = [(sum(map(_pairs, own)), sum(map(len, own))) for own in dealt]
    specials: list[list[Block]] = [[] for _ in range(parts)]
    for block in sorted(schedule.special_blocks, key=lambda block: -block.pairs):
        part = min(range(parts), key=lambda part: (loads[part], part))
        specials[part].append(block)
        loads[part] = (loads[part][0] + block.pairs, loads[part][1] + 1)
    whole = schedule.grid.num_entries != schedule.grid.num_offsets
    return [
        Share(tuple(own), tuple(blocks), None if whole else _entries([*own, blocks]))
        for own, blocks in zip(dealt, specials, strict=True)
    ]


def _deal_bands(schedule: Schedule, parts: int) -> list[Share]:
    blocks = [block for run in (*schedule.classes, schedule.special_blocks) for block in run]
    apart = _greedily(blocks, parts, lambda block: (schedule.work(block),))
    pieces = [piece for block in blocks for piece in _pieces(block, parts)]
    divided = _greedily(pieces, parts, lambda block: (schedule.work(block),))
    if not all(divided):
        raise ValueError(f"more than a grid of {schedule.grid.shape} can be divided into")

    def busiest(dealt: list[list[Block]]) -> float:
        return max(sum(map(schedule.work, own)) for own in dealt)

    entries = schedule.grid.num_entries == len({block.entry for block in blocks}) == len(blocks)
    by_entry = entries and all(apart) and busiest(divided) > WORTH_A_WHOLE_BANK * busiest(apart)
    return [
        Share(
            tuple((block,) for block in own if block.queries and block.keys),
            tuple(block for block in own if not (block.queries and block.keys)),
            _entries([own]) if by_entry else None,
        )
        for own in (apart if by_entry else divided)
    ]


def _greedily(items: Sequence[T], parts: int, load: Callable[[T], tuple[float, ...]]) -> list[list[T]]:
    """Deals the largest first, always to the part with the least load."""
    dealt: list[list[T]] = [[] for _ in range(parts)]
    loads: list[tuple[float, ...]] = [(0.0,) * len(load(items[0]))] * parts
    for item in sorted(items, key=lambda item: tuple(-x for x in load(item))):
        part = min(range(parts), key=lambda part: (loads[part], part))
        dealt[part].append(item)
        loads[part] = tuple(a + b for a, b in zip(loads[part], load(item), strict=True))
    return dealt


def _pieces(block: Block, count: int) -> list[Block]:
    """The block divided by its queries' first coordinate, each piece with the keys that it meets."""
    if block.queries is None or block.keys is None:
        return [block]
    (start, stop), *rest = block.queries
    length = math.ceil((stop - start) / count)
    return [
        replace(
            block,
            queries=((first, min(first + length, stop)), *rest),
            keys=(_met(block, (first, min(first + length, stop))), *block.keys[1:]),
        )
        for first in range(start, stop, length)
    ]


def _met(block: Block, queries: Range) -> Range:
    """The first coordinates of the keys that these queries meet."""
    assert block.queries is not None
    assert block.keys is not None
    if block.band is None:
        shift = block.keys[0][0] - block.queries[0][0]
        return queries[0] + shift, queries[1] + shift
    least, greatest = block.band[0]
    return max(queries[0] - greatest, block.keys[0][0]), min(queries[1] - least, block.keys[0][1])


def _pairs(blocks: Sequence[Block]) -> int:
    return sum(block.pairs for block in blocks)


def _entries(runs: Sequence[Sequence[Block]]) -> tuple[int, ...]:
    return tuple(sorted({block.entry for blocks in runs for block in blocks}))
