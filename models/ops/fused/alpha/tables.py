"""Index tables of a schedule's pairs, for kernels that own tokens and for kernels that own bank entries.

A kernel that sums over a token's pairs owns a *group* of P neighbouring tokens: at one step all of them meet
their partner at the same offset, so that they share the bank entry that the step loads. All groups go
through the residue classes in the same order, so that few entries are in use at a time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.offsets import Block
from models.ops.device import on_host
from models.ops.walk.schedule import Schedule

MULTIPROCESSORS = 132  # programs to keep busy: an H100's

Side = Literal["query", "key"]


class Steps(NamedTuple):
    """The pairs of each group of P owner tokens, one bank entry a step; all int32.

    owners    [G, P] tokens, −1 for none
    bounds    [G, S + 1]: the group's steps bounds[s] … bounds[s + 1] are those of its part s
    entries   [T] of each step
    partners  [T, P]: the token that each owner meets, −1 for none
    """

    owners: Tensor
    bounds: Tensor
    entries: Tensor
    partners: Tensor


class Runs(NamedTuple):
    """The pairs sorted by bank entry, and cut into segments that one program works on; all int32.

    queries, keys  [pairs] tokens
    segments       [4, L], longest first: the entry, the first pair, where it ends, and the slot of its sum
    bounds         [K + 1]: the slots of each entry
    single         every entry has exactly one segment, whose slot is the entry
    """

    queries: Tensor
    keys: Tensor
    segments: Tensor
    bounds: Tensor
    single: bool


class _Pairs(NamedTuple):
    query: Tensor
    key: Tensor
    block: Tensor
    entries: Tensor  # of each block
    many: Tensor  # of each block: pairs with the class token, whose partners all come in one block


class PairTables:
    """The tables of the pairs with queries first … first + count, built once a device and group size."""

    def __init__(self, schedule: Schedule, first: int, count: int) -> None:
        self._schedule, self._first, self._count = schedule, first, count
        self._pairs = on_host(_pairs)(schedule, first, count)
        self.steps = lru_cache(maxsize=8)(on_host(self._steps))
        self.runs = lru_cache(maxsize=4)(on_host(self._runs))
        self.exists = lru_cache(maxsize=4)(on_host(self._exists))

    @property
    def pairs(self) -> int:
        return len(self._pairs.query)

    @property
    def complete(self) -> bool:
        """Whether every pair that the grid has for these queries is here."""
        N, first, stop = self._schedule.grid.num_tokens, self._first, self._first + self._count
        if self._schedule.grid.causal:
            return self.pairs == (stop * (stop + 1) - first * (first + 1)) // 2
        return self.pairs == self._count * N

    def _exists(self, device: torch.device) -> Tensor | None:
        """1 [queries, N] where a pair is here, else 0 (int8); None if every pair of the grid is."""
        if self.complete:
            return None
        exists = torch.zeros(self._count, self._schedule.grid.num_tokens, dtype=torch.int8)
        exists[self._pairs.query - self._first, self._pairs.key] = 1
        return exists.to(device, non_blocking=True)

    def _steps(self, side: Side, width: int, parts: int, device: torch.device) -> list[Tensor]:
        """The `Steps` of groups of `width` owners on one side of the pairs, each group's in `parts` parts."""
        grid, pairs = self._schedule.grid, self._pairs
        owner, partner = (pairs.query, pairs.key) if side == "query" else (pairs.key, pairs.query)
        owners = _groups(grid.shape[-1], grid.grid_tokens, grid.class_token, width)
        group, lane = torch.zeros(2, grid.num_tokens, dtype=torch.long)
        real = owners >= 0
        group[owners[real]], lane[owners[real]] = (place.long() for place in real.nonzero(as_tuple=True))
        # pairs of a block are one step, but for a class token that meets all the tokens in one block
        rank = torch.where(pairs.many[pairs.block] & (owner == 0), partner, 0)
        key = (group[owner] * len(pairs.entries) + pairs.block) * grid.num_tokens + rank
        steps, step = key.unique(return_inverse=True)
        partners = torch.full((len(steps), width), -1)
        partners[step, lane[owner]] = partner
        block = steps // grid.num_tokens
        stops = torch.searchsorted(block // len(pairs.entries), torch.arange(len(owners) + 1))
        start, length = stops[:-1], stops.diff()
        bounds = start[:, None] + length[:, None] * torch.arange(parts + 1) // parts
        if side == "query":
            outside = (owners < self._first) | (owners >= self._first + self._count)
            owners = owners.masked_fill(outside, -1)
        longest = length.argsort(descending=True, stable=True)
        longest = longest[(owners[longest] >= 0).any(1)]
        tables = owners[longest], bounds[longest], pairs.entries[block % len(pairs.entries)], partners
        return list(Steps(*(_to(table, device) for table in tables)))

    def _runs(self, device: torch.device) -> Runs:
        pairs, K = self._pairs, self._schedule.num_entries
        entry = pairs.entries[pairs.block]
        order = entry.argsort(stable=True)
        count = torch.bincount(entry, minlength=K)
        longest = max(1, -(-self.pairs // MULTIPROCESSORS))
        pieces = -(-count // longest)
        entries = torch.repeat_interleave(torch.arange(K), pieces)
        bounds = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
        piece = torch.arange(len(entries)) - bounds[entries]
        first = count.cumsum(0) - count
        start = first[entries] + count[entries] * piece // pieces[entries]
        stop = first[entries] + count[entries] * (piece + 1) // pieces[entries]
        segments = torch.stack([entries, start, stop, torch.arange(len(entries))])
        segments = segments[:, (stop - start).argsort(descending=True, stable=True)]
        tables = pairs.query[order], pairs.key[order], segments, bounds
        return Runs(*(_to(table, device) for table in tables), single=bool((pieces == 1).all()))


@lru_cache(maxsize=32)
def pair_tables(schedule: Schedule, first: int, count: int) -> PairTables:
    """The tables of a schedule's queries first … first + count, kept for the layers that share them."""
    return PairTables(schedule, first, count)


def _pairs(schedule: Schedule, first: int, count: int) -> _Pairs:
    grid = schedule.grid
    tokens = torch.arange(grid.grid_tokens).view(grid.shape) + grid.class_token
    blocks = [block for blocks in schedule.classes for block in blocks] + list(schedule.special_blocks)
    query, key, index = [], [], []
    for number, block in enumerate(blocks):
        q, k = torch.broadcast_tensors(*(_tokens(tokens, r) for r in (block.queries, block.keys)))
        here = (q >= first) & (q < first + count)
        query.append(q[here])
        key.append(k[here])
        index.append(torch.full_like(query[-1], number))
    nothing = [torch.zeros(0, dtype=torch.long)]
    return _Pairs(
        torch.cat(query + nothing),
        torch.cat(key + nothing),
        torch.cat(index + nothing),
        torch.tensor([block.entry for block in blocks], dtype=torch.long),
        torch.tensor([_meets_many(block) for block in blocks], dtype=torch.bool),
    )


def _tokens(tokens: Tensor, rectangle: tuple[tuple[int, int], ...] | None) -> Tensor:
    if rectangle is None:
        return torch.zeros(1, dtype=torch.long)
    return tokens[tuple(slice(start, stop) for start, stop in rectangle)].flatten()


def _meets_many(block: Block) -> bool:
    return (block.queries is None) != (block.keys is None)


def _groups(row: int, grid_tokens: int, class_token: bool, width: int) -> Tensor:
    """Tokens in groups of `width` neighbours along the grid's last dimension [G, width], −1 for none."""
    rows = (torch.arange(grid_tokens) + class_token).view(-1, row)
    missing = -row % width
    groups = torch.nn.functional.pad(rows, (0, missing), value=-1).view(-1, width)
    if not class_token:
        return groups
    alone = torch.full((1, width), -1)
    alone[0, 0] = 0
    return torch.cat([alone, groups])


def _to(table: Tensor, device: torch.device) -> Tensor:
    return table.to(torch.int32).contiguous().to(device, non_blocking=True)
