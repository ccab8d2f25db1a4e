"""What the launches of the operators of bands cost: bytes and products of the kernels as they are written.

A step of attention multiplies its whole tiles, pairs beyond the band included, and reads its rows again; rows
that an entry multiplies are counted as device memory's, although those of few samples stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.ops.fused.arguments import sides_of
from models.ops.fused.bands import operators  # noqa: F401 (registers what COSTS is keyed by)
from models.ops.fused.bands.arguments import RowTables, products_of, unflatten_band_tiles, unflatten_tables
from models.ops.fused.bands.operators import slices
from models.ops.fused.tiles import padded_width
from models.ops.kernel_cost import COSTS, WORKSPACES, KernelCost

FLOAT = 4  # bytes of a float32, and of an index


class _Slice:
    """The numbers that all kernels of a slice of the samples share."""

    def __init__(
        self,
        sources: list[Tensor],
        banks: list[Tensor],
        tables: list[Tensor],
        operands: list[int],
        heads: int,
        tiles: list[int],
        part: slice,
    ) -> None:
        self.sides, self.tables = sides_of(sources, banks, operands), unflatten_tables(tables)
        self.tiles, self.samples, self.heads = unflatten_band_tiles(tiles), part.stop - part.start, heads
        self.N, self.size = sources[0].shape[0], sources[0].element_size()
        self.C, self.D = self.sides.channels, self.sides.width
        self.padded = heads * padded_width(self.D // heads)
        self.entry_bytes = self.C * self.D * self.size

    def rows(self, operand: int) -> RowTables:
        return self.tables.key if operand else self.tables.query

    def numbers(self, operand: int) -> int:
        """Of an operand's rows."""
        rows = self.N if self.sides.banks[operand] is None else len(self.rows(operand).token)
        return rows * self.samples * self.D

    def project(self) -> Iterator[KernelCost]:
        tile = self.tiles.rows
        for _, operands in products_of(self.sides):
            rows, count = self.rows(operands[0]), len(operands)
            across, tiles = math.ceil(self.D / tile.columns), len(rows.tile_run)
            written = count * self.numbers(operands[0]) * self.size
            read = self.N * self.samples * self.C + count * len(rows.run_entry) * self.C * self.D
            products = count * across * tiles * self.C * (tile.rows + tile.columns) * self.size
            inner = math.ceil(self.C / tile.inner) * tile.inner
            flops = 2 * count * tiles * tile.rows * across * tile.columns * inner
            yield KernelCost(read * self.size + written, products + written, flops)

    def attention(self, of_keys: bool, products: int, moved: int, tensors: int) -> KernelCost:
        """One kernel of attention: its tiles own queries or keys, and meet those of the other side, of which
        each step reads `tensors` rows; `moved` bytes go through memory at least once."""
        tile = self.tiles.attend
        own, met = (tile.columns, tile.rows) if of_keys else (tile.rows, tile.columns)
        visits = self.tables.keys if of_keys else self.tables.queries
        programs = self.heads * self.samples
        steps, met_blocks = len(visits[4]), len(visits[2])
        width = self.padded // self.heads * self.size
        flops = programs * steps * own * met * products * 2 * self.padded // self.heads
        read = steps * met * (tensors * width + 4 * FLOAT) + met_blocks * own * (2 * width + FLOAT)
        return KernelCost(moved, moved + programs * read, flops)

    def sums(self, several: bool, again: bool) -> Iterator[KernelCost]:
        """Of ∂q, ∂k and ∂v into sources and banks."""
        for operand, bank in enumerate(self.sides.banks):
            if bank is None:
                moved = self.numbers(operand) * (self.size + 2 * FLOAT)
                yield KernelCost(moved, moved, 0)
        for _, operands in products_of(self.sides):
            yield self._token_sums(operands)
        for operand, bank in enumerate(self.sides.banks):
            if bank is not None:
                yield self._bank_sums(operand, FLOAT if several else bank.element_size(), again)

    def _token_sums(self, operands: tuple[int, ...]) -> KernelCost:
        tile, rows, count = self.tiles.tokens, self.rows(operands[0]), len(operands)
        across = math.ceil(self.C / tile.columns)
        programs = len(rows.groups[2]) * math.ceil(self.samples / tile.samples)
        summed = 2 * self.N * self.samples * self.C * FLOAT
        read = count * self.numbers(operands[0]) * self.size
        memory = read + count * len(rows.run_entry) * self.entry_bytes + summed
        cache = across * read + programs * count * self.entry_bytes + summed
        inner = math.ceil(self.D / tile.inner) * tile.inner
        flops = 2 * programs * tile.rows * across * tile.columns * inner * count
        return KernelCost(memory, cache + programs * across * tile.rows * FLOAT, flops)

    def _bank_sums(self, operand: int, size: int, again: bool) -> KernelCost:
        tile, rows = self.tiles.banks, self.rows(operand)
        down, across = math.ceil(self.C / tile.rows), math.ceil(self.D / tile.columns)
        written = len(rows.run_entry) * self.C * self.D * size * (2 if again else 1)
        count = len(rows.token) * self.samples
        memory = (self.N * self.samples * self.C + count * self.D) * self.size + written
        cache = count * (across * self.C + down * self.D) * self.size + down * across * count * FLOAT
        padded = len(rows.tile_run) * self.tiles.rows.rows  # no fewer than this kernel's
        flops = 2 * padded * down * tile.rows * across * tile.columns
        return KernelCost(memory, cache + written, flops)


def _casts(sources: list[Tensor], banks: list[Tensor]) -> list[KernelCost]:
    size = sources[0].element_size()
    moved = [bank.numel() * (bank.element_size() + size) for bank in banks if bank.element_size() != size]
    return [KernelCost(bytes, bytes, 0) for bytes in moved]


def _copies(numbers: int, size: int, several: bool) -> list[KernelCost]:
    """Of a slice of so many numbers from a whole tensor, or into it."""
    return [KernelCost(2 * numbers * size, 2 * numbers * size, 0)] if several else []


def forward_cost(
    sources: list[Tensor],
    banks: list[Tensor],
    tables: list[Tensor],
    operands: list[int],
    heads: int,
    scale: float,
    keep: bool,
    samples: int,
    tiles: list[int],
) -> list[KernelCost]:
    """The banks' casts; per slice a product for each side, and attention; and where there are several slices
    their copies."""
    costs, batch = _casts(sources, banks), sources[0].shape[1]
    for part in slices(batch, samples):
        at = _Slice(sources, banks, tables, operands, heads, tiles, part)
        several, tokens = at.samples < batch, at.N * at.samples
        for source in sources:
            costs += _copies(tokens * source.shape[2], at.size, several)
        costs += at.project()
        moved = sum(map(at.numbers, range(3))) * at.size + tokens * (at.D + heads) * FLOAT
        for numbers in (tokens * heads, tokens * at.D):  # zeros, and into the whole
            costs += 2 * _copies(numbers, FLOAT, several)
        costs.append(at.attention(False, 2, moved, 2))
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
    whole: bool,
    samples: int,
    tiles: list[int],
) -> list[KernelCost]:
    """The zeros that ∂sources begin with, and ∂banks where an entry has no rows; casts; per slice the
    products again, unless kept, two kernels of attention and the sums; copies of slices, as in forward; and
    the rounding of ∂banks that were summed in float32."""
    (batch, heads), several = lse.shape[1:], samples < lse.shape[1]
    filled = [source.numel() * FLOAT for source in sources]
    filled += [bank.numel() * (FLOAT if several else bank.element_size()) for bank in banks if not whole]
    costs = [KernelCost(written, written, 0) for written in filled] + _casts(sources, banks)
    for part in slices(batch, samples):
        at = _Slice(sources, banks, tables, operands, heads, tiles, part)
        tokens = at.N * at.samples
        for source in sources:
            costs += _copies(tokens * source.shape[2], at.size, several)
            costs += 2 * _copies(tokens * source.shape[2], FLOAT, several)
        costs += [] if kept else at.project()
        for numbers, size in ((tokens * heads, FLOAT), (tokens * heads, FLOAT), (tokens * at.D, at.size)):
            costs += _copies(numbers, size, several)
        q, k, v = map(at.numbers, range(3))
        state = tokens * (at.D * at.size + 2 * heads * FLOAT)
        costs.append(at.attention(False, 3, (2 * q + k + v) * at.size + state, 2))
        costs.append(at.attention(True, 4, (q + 2 * k + 2 * v) * at.size + state, 2))
        costs += at.sums(several, part.start > 0)
    rounded = [
        bank.numel() * FLOAT + bank.nbytes for bank in banks if several and bank.element_size() != FLOAT
    ]
    return costs + [KernelCost(bytes, bytes, 0) for bytes in rounded]


def forward_workspace(
    sources: list[Tensor],
    banks: list[Tensor],
    tables: list[Tensor],
    operands: list[int],
    heads: int,
    scale: float,
    keep: bool,
    samples: int,
    tiles: list[int],
) -> int:
    """Bytes of the casts, of a slice's rows unless they are kept, and of its copies."""
    part = slice(0, samples)
    at = _Slice(sources, banks, tables, operands, heads, tiles, part)
    rows = 0 if keep else _row_bytes(at)
    several = samples < sources[0].shape[1]
    out = at.N * samples * (heads + at.D) * FLOAT
    return _cast_bytes(sources, banks) + rows + several * (_slice_bytes(sources, samples) + out)


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
    whole: bool,
    samples: int,
    tiles: list[int],
) -> int:
    """Bytes of the casts, of a slice's rows and their gradients, of its copies, and of float32 sums of banks
    that are not."""
    at = _Slice(sources, banks, tables, operands, lse.shape[2], tiles, slice(0, samples))
    gradients = sum(map(at.numbers, range(3))) * at.size
    several = samples < lse.shape[1]
    state = at.N * samples * (2 * at.heads * FLOAT + at.D * at.size)
    copies = _slice_bytes(sources, samples) * (1 + FLOAT // at.size) + state
    sums = sum(bank.numel() * FLOAT for bank in banks if several and bank.element_size() != FLOAT)
    rows = 0 if kept else _row_bytes(at)
    return _cast_bytes(sources, banks) + rows + gradients + several * copies + sums


def _row_bytes(at: _Slice) -> int:
    return sum(at.numbers(i) for i, bank in enumerate(at.sides.banks) if bank is not None) * at.size


def _slice_bytes(sources: list[Tensor], samples: int) -> int:
    return sum(s.shape[0] * samples * s.shape[2] * s.element_size() for s in sources)


def _cast_bytes(sources: list[Tensor], banks: list[Tensor]) -> int:
    size = sources[0].element_size()
    return sum(bank.numel() * size for bank in banks if bank.element_size() != size)


_COSTS: dict[str, tuple[Any, Any]] = {
    "bands_forward": (forward_cost, forward_workspace),
    "bands_backward": (backward_cost, backward_workspace),
}
for _name, (_cost, _workspace) in _COSTS.items():
    _operator = getattr(torch.ops.translution, _name).default
    COSTS[_operator], WORKSPACES[_operator] = _cost, _workspace
