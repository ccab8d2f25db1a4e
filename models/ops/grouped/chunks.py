"""Cuts a schedule into chunks of whole residue classes, with the index tables that grouped products read.

In a chunk the pairs of one bank entry are consecutive: a group. Tables are built once per schedule, size
and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid
from models.ops.walk.rows import Side
from models.ops.walk.schedule import MAX_RUNS, Schedule


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
        sizes = torch.tensor([sum(b.pairs for b in blocks) for blocks in groups.values()])
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
        self.stops = lru_cache(maxsize=4)(self._group_stops)

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
    pairs = max((sum(block.pairs for block in blocks) for blocks in classes), default=1)
    entries = max((len({block.entry for block in blocks}) for blocks in classes), default=1)
    room = budget.workspace - entries * budget.entry
    samples = min(batch, max(1, room // (pairs * budget.pair)))
    fitting = budget.workspace // (pairs * samples * budget.pair + entries * budget.entry)
    count = min(max(1, fitting), MAX_RUNS // entries)
    return Plan(_cut(schedule, count, device), samples)


@lru_cache(maxsize=64)
def _cut(schedule: Schedule, count: int, device: torch.device) -> Sequence[Chunk]:
    classes, seen = _classes(schedule), set[int]()
    chunks = []
    for start in range(0, len(classes), count):
        groups: dict[int, list[Block]] = {}
        for blocks in classes[start : start + count]:
            for block in blocks:
                groups.setdefault(block.entry, []).append(block)
        chunks.append(Chunk(schedule.grid, groups, seen, device))
        seen.update(groups)
    return chunks


def used_entries(schedule: Schedule) -> set[int]:
    """The bank entries that some pair uses."""
    return {block.entry for blocks in _classes(schedule) for block in blocks}


def _classes(schedule: Schedule) -> list[tuple[Block, ...]]:
    """The class token's blocks are one class more."""
    return [*schedule.classes, *([schedule.special_blocks] if schedule.special_blocks else [])]


def _tokens(positions: Tensor, rectangle: tuple[tuple[int, int], ...] | None, pairs: int) -> Tensor:
    if rectangle is None:
        return torch.zeros(pairs, dtype=torch.long)
    return positions[tuple(slice(start, stop) for start, stop in rectangle)].flatten()
