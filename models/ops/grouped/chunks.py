"""Cuts a schedule into chunks of whole residue classes, with the index tables that grouped products read.

In a chunk the pairs of one bank entry are consecutive: a group. Tables are built once per schedule, size
and device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid
from models.ops.device import on_host
from models.ops.walk.rows import Side
from models.ops.walk.schedule import Schedule

MAX_GROUPS = 1023  # the most that one grouped product takes


class Budget(NamedTuple):
    """Bytes of the chunk's temporaries: in all, of a pair of one sample, and of a bank entry."""

    workspace: int
    pair: int
    entry: int


class OfToken(NamedTuple):
    """The pairs of each token: pair[first[n]] … pair[first[n + 1]]."""

    first: Tensor
    pair: Tensor


class Chunk:
    """Whole residue classes: `pairs` pairs, sorted by bank entry.

    token    per side: [pairs] the token of each pair
    of       per side: the pairs of each token
    entries  [G] the bank entry of each group
    again    [G] whether an earlier chunk has this entry
    """

    def __init__(
        self, grid: OffsetGrid, groups: dict[int, list[Block]], seen: set[int], device: torch.device
    ) -> None:
        blocks = [block for blocks in groups.values() for block in blocks]
        positions = torch.arange(grid.grid_tokens).view(grid.shape) + grid.class_token
        sides: dict[Side, Tensor] = {
            "query": torch.cat([_tokens(positions, b.queries, b.pairs) for b in blocks]),
            "key": torch.cat([_tokens(positions, b.keys, b.pairs) for b in blocks]),
        }
        sizes = torch.tensor([_pairs(blocks) for blocks in groups.values()])
        self.pairs = int(sizes.sum())
        self._stops = sizes.cumsum(0)
        self._device = device
        self.token: dict[Side, Tensor] = {}
        self.of: dict[Side, OfToken] = {}
        for side, token in sides.items():
            counts = torch.bincount(token, minlength=grid.num_tokens).cumsum(0)
            first = torch.cat([counts.new_zeros(1), counts])
            pair = torch.argsort(token, stable=True)
            self.token[side] = token.int().to(device)
            self.of[side] = OfToken(first.int().to(device), pair.int().to(device))
        self.entries = torch.tensor(list(groups), dtype=torch.int32).to(device)
        self.again = torch.tensor([entry in seen for entry in groups], dtype=torch.int32).to(device)
        self.stops = lru_cache(maxsize=4)(on_host(self._group_stops))

    def _group_stops(self, samples: int) -> Tensor:
        """Where each group's rows end, with so many samples a pair."""
        return (self._stops * samples).int().to(self._device)


class Plan(NamedTuple):
    """The chunks, and how many samples are worked on at a time in each."""

    chunks: Sequence[Chunk]
    samples: int


def plan(schedule: Schedule, batch: int, budget: Budget, device: torch.device) -> Plan:
    """As many whole classes a chunk as fit beside their entries with the whole batch; where not even one
    fits, one class a chunk and the batch in slices."""
    classes = _classes(schedule)
    room = min(
        ((budget.workspace - _entries(blocks) * budget.entry) // (_pairs(blocks) * budget.pair))
        for blocks in classes
    )
    samples = min(batch, max(1, room))
    return Plan(_cut(schedule, samples, budget, device), samples)


@lru_cache(maxsize=64)
@on_host
def _cut(schedule: Schedule, samples: int, budget: Budget, device: torch.device) -> Sequence[Chunk]:
    seen: set[int] = set()
    chunks = []
    for groups in _pack(_classes(schedule), samples, budget):
        chunks.append(Chunk(schedule.grid, groups, seen, device))
        seen.update(groups)
    return chunks


def _pack(
    classes: Sequence[tuple[Block, ...]], samples: int, budget: Budget
) -> Iterator[dict[int, list[Block]]]:
    """The blocks of each chunk by entry; a chunk is filled until the next class does not fit."""
    groups: dict[int, list[Block]] = {}
    pairs = 0
    for blocks in classes:
        together = groups.keys() | {block.entry for block in blocks}
        needed = (pairs + _pairs(blocks)) * samples * budget.pair + len(together) * budget.entry
        if groups and (needed > budget.workspace or len(together) > MAX_GROUPS):
            yield groups
            groups, pairs = {}, 0
        for block in blocks:
            groups.setdefault(block.entry, []).append(block)
        pairs += _pairs(blocks)
    if groups:
        yield groups


def used_entries(schedule: Schedule) -> set[int]:
    """The bank entries that some pair uses."""
    return {block.entry for blocks in _classes(schedule) for block in blocks}


def _classes(schedule: Schedule) -> list[tuple[Block, ...]]:
    """Each of the class token's blocks counts as a class."""
    return [*schedule.classes, *((block,) for block in schedule.special_blocks)]


def _pairs(blocks: Sequence[Block]) -> int:
    return sum(block.pairs for block in blocks)


def _entries(blocks: Sequence[Block]) -> int:
    return len({block.entry for block in blocks})


def _tokens(positions: Tensor, rectangle: tuple[tuple[int, int], ...] | None, pairs: int) -> Tensor:
    if rectangle is None:
        return torch.zeros(pairs, dtype=torch.long)
    return positions[tuple(slice(start, stop) for start, stop in rectangle)].flatten()
