"""What the launches of the fused operators cost: the bytes and products of the kernels as they are written.

Rows that do not exist are read (another in their place) and multiplied; a tile reads its part of a bank
entry once a step. Bytes of a chunk's ∂q, ∂k and ∂v are counted as device memory's, although small chunks
stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from models.ops.fused import operators  # noqa: F401 (registers what COSTS is keyed by)
from models.ops.fused.arguments import (
    BackwardCut,
    BackwardTables,
    ForwardCut,
    ForwardTables,
    Sides,
    bank_products,
    sides_of,
    token_products,
    unflatten_cuts,
    unflatten_tiles,
)
from models.ops.fused.tiles import Tile, padded_width
from models.ops.kernel_cost import COSTS, WORKSPACES, KernelCost

FLOAT = 4  # bytes of a float32, and of an index


class Shapes:
    """The numbers that all kernels of a pass share."""

    def __init__(self, sides: Sides, tables: ForwardTables | BackwardTables, heads: int) -> None:
        source = sides.sources[0]
        self.sides, self.size, self.heads = sides, source.element_size(), heads
        self.N, self.B = source.shape[:2]
        self.C, self.D = sides.channels, sides.width
        self.padded = heads * padded_width(self.D // heads)
        self.banked = sum(bank is not None for bank in sides.banks)
        self.entry_bytes = self.C * self.D * self.size
        self.pairs, self.runs = len(tables.key), len(tables.run_entry)
        self.source_bytes = sum(s.nbytes for s in {id(s): s for s in sides.sources}.values())
        self.casts = any(bank is not None and bank.element_size() != self.size for bank in sides.banks)

    def cast(self, runs: int) -> Iterator[KernelCost]:
        """The cast of the banks' entries that a launch needs."""
        for bank in self.sides.banks if self.casts else ():
            if bank is not None:
                numbers = runs * self.C * self.D * (bank.element_size() + self.size)
                yield KernelCost(numbers, numbers, 0)

    def cast_bytes(self, runs: int) -> int:
        """Of the casts of so many runs' entries."""
        return self.banked * runs * self.entry_bytes if self.casts else 0

    def row_bytes(self, tile: Tile) -> int:
        """Read of the sources for a row of pairs, by all the programs of its heads."""
        programs = self.padded // tile.columns
        banked = [bank is not None for bank in self.sides.banks]
        reads = sum(banked) - (tile.joint and self.sides.share)
        return (reads * programs * self.C + (3 - sum(banked)) * self.D) * self.size

    def projected(self, rows: int, tile: Tile) -> int:
        """Floating-point operations of the projections of so many rows, the padding included."""
        inner = math.ceil(self.C / tile.inner) * tile.inner
        return 2 * rows * inner * self.padded * self.banked


def forward_cost(
    sources: list[Tensor],
    banks: list[Tensor],
    tables: list[Tensor],
    operands: list[int],
    heads: int,
    scale: float,
    keep: bool,
    cuts: list[int],
    tiles: list[int],
) -> list[KernelCost]:
    """One `attend` a cut, after the casts it needs."""
    table, (tile, *_) = ForwardTables(*tables), unflatten_tiles(tiles)
    at = Shapes(sides_of(sources, banks, operands), table, heads)
    costs, all_steps = [], max(len(table.step_run), 1)
    for start, stop in pairwise(unflatten_cuts(ForwardCut, cuts)):
        costs += at.cast(stop.run - start.run)
        steps, runs = stop.steps - start.steps, stop.run - start.run
        rows = at.pairs * at.B * steps // all_steps
        programs = steps * math.ceil(at.B / tile.samples)
        written = at.N * at.B * (at.D + heads) * FLOAT * (2 if start.chunk else 1)
        written += rows * at.banked * at.D * at.size if keep else 0
        memory = at.source_bytes + at.banked * runs * at.entry_bytes + written
        indices = programs * (at.padded // tile.columns) * (1 + 2 * tile.rows) * FLOAT
        cache = (
            programs * tile.rows * at.row_bytes(tile)
            + programs * at.banked * at.entry_bytes
            + written
            + indices
        )
        costs.append(KernelCost(memory, cache, at.projected(programs * tile.rows, tile)))
    return costs


def backward_cost(
    sources: list[Tensor],
    banks: list[Tensor],
    kept: list[Tensor],
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    tables: list[Tensor],
    operands: list[int],
    scale: float,
    spans: bool,
    cuts: list[int],
    tiles: list[int],
) -> list[KernelCost]:
    """The zeros that ∂sources begin with, and ∂banks where not every entry is written once; per chunk:
    casts, `pair_gradients`, `bank_gradients` of each source, `token_gradients` of each source and side; and
    the rounding of ∂banks that were summed in float32."""
    tile, bank_tile, token_tile = unflatten_tiles(tiles)
    at = Shapes(sides_of(sources, banks, operands), BackwardTables(*tables), lse.shape[2])
    filled = [s.numel() * FLOAT for s in sources]
    if spans or at.runs < len(banks[0] if banks else ()):
        filled += [bank.numel() * (FLOAT if spans else bank.element_size()) for bank in banks]
    costs = [KernelCost(written, written, 0) for written in filled]
    for start, stop in pairwise(unflatten_cuts(BackwardCut, cuts)):
        runs, rows = stop.run - start.run, (stop.pair - start.pair) * at.B
        tile_rows = (stop.tile - start.tile) * tile.rows
        costs += at.cast(runs)
        costs.append(_pair_cost(at, tile, runs, rows, tile_rows, bool(kept)))
        for _, parts in bank_products(at.sides):
            costs.append(_bank_cost(at, bank_tile, runs, rows, tile_rows, len(parts), spans))
        for first, second in token_products(at.sides):
            steps = stop.key_steps - start.key_steps if first else stop.query_steps - start.query_steps
            operands_here = 1 if second is None else 2
            banked = at.sides.banks[first] is not None
            costs.append(_token_cost(at, token_tile, steps, runs, rows, operands_here, banked))
    narrow = [bank for bank in banks if spans and bank.element_size() != FLOAT]
    moved = [bank.numel() * FLOAT + bank.nbytes for bank in narrow]  # their sums, from float32
    return costs + [KernelCost(bytes, bytes, 0) for bytes in moved]


def _pair_cost(at: Shapes, tile: Tile, runs: int, rows: int, tile_rows: int, kept: bool) -> KernelCost:
    passed = rows * at.D * at.size * 3  # ∂q, ∂k, ∂v
    grads = rows * ((2 if tile.again else 1) * at.D * at.size + 2 * at.heads * FLOAT)
    indices = tile_rows * 2 * FLOAT * (at.padded // tile.columns)
    if kept:
        read = rows * 3 * at.D * at.size
        return KernelCost(read + at.source_bytes + passed, read + grads + passed + indices, 0)
    tile = tile._replace(joint=tile.joint and at.sides.share)
    entries = tile_rows // tile.rows * at.banked * at.entry_bytes
    memory = 2 * at.source_bytes + at.banked * runs * at.entry_bytes + passed
    cache = tile_rows * at.row_bytes(tile) + entries + grads + passed + indices
    return KernelCost(memory, cache, at.projected(tile_rows, tile))


def _bank_cost(
    at: Shapes, tile: Tile, runs: int, rows: int, tile_rows: int, parts: int, spans: bool
) -> KernelCost:
    """tile_rows: the rows with those that fill the last tile of each run (of pair_gradients, no fewer)."""
    down, across = math.ceil(at.C / tile.rows), math.ceil(at.D / tile.columns)
    written = runs * at.C * at.D * FLOAT * (2 if spans else 1)
    memory = at.N * at.B * at.C * at.size + parts * (rows * at.D * at.size + written)
    read = rows * (across * at.C + down * at.D) * at.size + down * across * rows * FLOAT
    flops = 2 * tile_rows * down * tile.rows * across * tile.columns
    return KernelCost(memory, parts * (read + written), parts * flops)


def _token_cost(
    at: Shapes, tile: Tile, steps: int, runs: int, rows: int, operands: int, banked: bool
) -> KernelCost:
    if not banked:
        summed = 2 * at.N * at.B * at.D * FLOAT
        return KernelCost(rows * at.D * at.size + summed, rows * (at.D * at.size + FLOAT) + summed, 0)
    across = math.ceil(at.C / tile.columns)
    programs = steps * math.ceil(at.B / tile.samples)
    summed = 2 * at.N * at.B * at.C * FLOAT
    read = rows * at.D * at.size * operands
    memory = read + operands * runs * at.entry_bytes + summed
    indices = programs * across * tile.rows * FLOAT
    cache = across * read + programs * operands * at.entry_bytes + summed + indices
    inner = math.ceil(at.D / tile.inner) * tile.inner
    return KernelCost(memory, cache, 2 * programs * tile.rows * across * tile.columns * inner * operands)


def forward_workspace(
    sources: list[Tensor], banks: list[Tensor], tables: list[Tensor], operands: list[int], *rest: Any
) -> int:
    """Bytes of the casts of a launch's entries."""
    at = Shapes(sides_of(sources, banks, operands), ForwardTables(*tables), rest[0])
    cuts = unflatten_cuts(ForwardCut, rest[3])
    return at.cast_bytes(max(stop.run - start.run for start, stop in pairwise(cuts)))


def backward_workspace(
    sources: list[Tensor],
    banks: list[Tensor],
    kept: list[Tensor],
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    tables: list[Tensor],
    operands: list[int],
    scale: float,
    spans: bool,
    cuts: list[int],
    tiles: list[int],
) -> int:
    """Bytes of a chunk's ∂q, ∂k and ∂v, of its casts, and of float32 sums of banks that are not."""
    at = Shapes(sides_of(sources, banks, operands), BackwardTables(*tables), lse.shape[2])
    chunks = list(pairwise(unflatten_cuts(BackwardCut, cuts)))
    pairs = max((stop.pair - start.pair for start, stop in chunks), default=0)
    runs = max((stop.run - start.run for start, stop in chunks), default=0)
    sums = sum(bank.numel() * FLOAT for bank in banks if spans and bank.element_size() != FLOAT)
    return 3 * pairs * at.B * at.D * at.size + at.cast_bytes(runs) + sums


COSTS[torch.ops.translution.fused_forward.default] = forward_cost
COSTS[torch.ops.translution.fused_backward.default] = backward_cost
WORKSPACES[torch.ops.translution.fused_forward.default] = forward_workspace
WORKSPACES[torch.ops.translution.fused_backward.default] = backward_workspace
