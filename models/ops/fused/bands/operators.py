"""The pass over bands as two operators of torch.library, with the launches of their kernels.

They take flat lists (see arguments.py): `operands` are (source, bank) of q, k and v, −1 for no bank. A pass
is made for `samples` samples at a time, so that their rows fit the workspace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from models.ops.fused.arguments import Sides, sides_of
from models.ops.fused.bands.arguments import (
    RowTables,
    Tables,
    products_of,
    unflatten_band_tiles,
    unflatten_tables,
)
from models.ops.fused.bands.tiles import REGISTERS
from models.ops.fused.operators import precision
from models.ops.fused.tiles import Tile, padded_width


@torch.library.custom_op("translution::bands_forward", mutates_args=())
def bands_forward(
    sources: list[Tensor],
    banks: list[Tensor],
    tables: list[Tensor],
    operands: list[int],
    heads: int,
    scale: float,
    keep: bool,
    samples: int,
    tiles: list[int],
) -> list[Tensor]:
    """lse [N, B, H] and out [N, B, H, E], float32; with `keep` the rows [rows, samples, D] of each slice's
    projected operands."""
    lse, out = _results(sources, sides_of(sources, banks, operands), heads)
    kept: list[Tensor] = []
    weights = cast_banks(sources, banks)
    for part in slices(lse.shape[1], samples):
        work = Work(sources, weights, tables, operands, heads, scale, tiles, part)
        rows = work.project()
        here = [work.whole(lse), work.whole(out)]
        work.attend(rows, *here)
        for whole, own in zip((lse, out), here, strict=True):
            if own is not whole:
                whole[:, part] = own
        kept += [t for t in rows if t is not None] if keep else []
    return [lse, out, *kept]


@bands_forward.register_fake
def _(sources, banks, tables, operands, heads, scale, keep, samples, tiles):
    sides, table = sides_of(sources, banks, operands), unflatten_tables(tables)
    kept = []
    for part in slices(sources[0].shape[1], samples) if keep else ():
        for i, bank in enumerate(sides.banks):
            rows = (table.key if i else table.query).token
            if bank is not None:
                kept.append(sources[0].new_empty((len(rows), part.stop - part.start, sides.width)))
    return [*_results(sources, sides, heads), *kept]


def _results(sources: list[Tensor], sides: Sides, heads: int) -> list[Tensor]:
    shape = (*sources[0].shape[:2], heads)
    return [
        sources[0].new_empty(size, dtype=torch.float32) for size in (shape, (*shape, sides.width // heads))
    ]


@torch.library.custom_op("translution::bands_backward", mutates_args=())
def bands_backward(
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
) -> list[Tensor]:
    """∂sources [N, B, C], float32, then ∂banks [K, C, D]; `whole`: every entry has rows."""
    H, stored = lse.shape[2], iter(kept)
    grad_sources = [torch.zeros_like(source, dtype=torch.float32) for source in sources]
    parts = list(slices(lse.shape[1], samples))
    new = torch.empty_like if whole else torch.zeros_like
    several = len(parts) > 1
    grad_banks = [new(bank, dtype=torch.float32 if several else bank.dtype) for bank in banks]
    weights = cast_banks(sources, banks)
    for part in parts:
        work = Work(sources, weights, tables, operands, H, scale, tiles, part)
        rows = [None if bank is None else next(stored) for bank in work.sides.banks] if kept else None
        rows = rows or work.project()
        totals = [work.whole(total) for total in grad_sources]
        grads = work.gradients(rows, lse[:, part], delta[:, part], grad[:, part])
        work.add_to_sources(grads, totals)
        work.add_to_banks(grads, grad_banks, part.start > 0)
        for total, own in zip(grad_sources, totals, strict=True):
            if own is not total:
                total[:, part] = own
        del rows, grads
    return grad_sources + [g.to(bank.dtype) for g, bank in zip(grad_banks, banks, strict=True)]


@bands_backward.register_fake
def _(sources, banks, kept, lse, delta, grad, tables, operands, scale, whole, samples, tiles):
    grad_sources = [torch.empty_like(source, dtype=torch.float32) for source in sources]
    return grad_sources + [torch.empty_like(bank) for bank in banks]


def slices(batch: int, samples: int) -> Iterator[slice]:
    for start in range(0, batch, samples):
        yield slice(start, min(start + samples, batch))


def cast_banks(sources: list[Tensor], banks: list[Tensor]) -> list[Tensor]:
    """The banks in the sources' dtype: shared entries are few."""
    return [bank.contiguous().to(sources[0].dtype) for bank in banks]


class Work:
    """The launches of one slice of the samples."""

    def __init__(
        self,
        sources: list[Tensor],
        banks: list[Tensor],
        tables: list[Tensor],
        operands: list[int],
        heads: int,
        scale: float,
        tiles: list[int],
        part: slice,
    ) -> None:
        self.part, self.samples = part, part.stop - part.start
        self.sides = sides_of([self.own(source) for source in sources], banks, operands)
        self.tables: Tables = unflatten_tables(tables)
        self.tiles = unflatten_band_tiles(tiles)
        self.heads, self.scale, self._operands = heads, scale, operands
        self._exact = precision(sources[0])

    def own(self, tensor: Tensor) -> Tensor:
        """The slice of a tensor [N, B, …] by itself."""
        return tensor[:, self.part].contiguous()

    def whole(self, tensor: Tensor) -> Tensor:
        """A result [N, B, …] itself if the slice is all of it, else new memory for the slice's, zeros."""
        if self.samples == tensor.shape[1]:
            return tensor
        return torch.zeros_like(tensor[:, self.part], memory_format=torch.contiguous_format)

    def rows(self, operand: int) -> RowTables:
        return self.tables.key if operand else self.tables.query

    def project(self) -> list[Tensor | None]:
        """q, k and v [rows, samples, D]; None where no bank multiplies."""
        sides, tile = self.sides, self.tiles.rows
        out: list[Tensor | None] = [None, None, None]
        for _, operands in products_of(sides):
            rows, source = self.rows(operands[0]), sides.sources[operands[0]]
            for operand in operands:
                out[operand] = source.new_empty((len(rows.token), self.samples, sides.width))
            first, last = operands[0], operands[-1]
            _kernel("bands.forward", "project_rows")[
                len(rows.tile_run), math.ceil(sides.width / tile.columns), len(operands)
            ](
                source, sides.banks[first], sides.banks[last], rows.token, rows.run_start, rows.run_entry,
                rows.tile_run, rows.tile_first, out[first], out[last], self.samples, sides.channels,
                sides.channels, sides.width, *tile[:3], self._exact,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        return out

    def attend(self, rows: list[Tensor | None], lse: Tensor, out: Tensor) -> None:
        self._attend("bands.forward", "attend", rows, self.tables.queries, self.tables.keys, lse, out)

    def gradients(self, rows: list[Tensor | None], lse: Tensor, delta: Tensor, grad: Tensor) -> list[Tensor]:
        """∂q, ∂k and ∂v [rows, samples, D], or of tokens [N, samples, D] where no bank multiplies."""
        grads = [torch.empty_like(own) for own in self._or_sources(rows)]
        state = [tensor.contiguous() for tensor in (lse, delta, grad)]
        queries, keys = self.tables.queries, self.tables.keys
        self._attend("bands.backward", "query_gradients", rows, queries, keys, *state, grads[0])
        self._attend("bands.backward", "key_gradients", rows, keys, queries, *state, *grads[1:])
        return grads

    def _or_sources(self, rows: list[Tensor | None]) -> list[Tensor]:
        return [s if own is None else own for own, s in zip(rows, self.sides.sources, strict=True)]

    def _attend(
        self,
        module: str,
        name: str,
        rows: list[Tensor | None],
        visits: tuple[Tensor, ...],
        met: tuple[Tensor, ...],
        *tensors: Tensor,
    ) -> None:
        tile, source, width = self.tiles.attend, self.sides.sources[0], self.sides.width // self.heads
        _kernel(module, name)[len(visits[0]), self.heads, self.samples](
            *self._or_sources(rows), *visits, met[0], *self.tables.geometry, *tensors,
            self.samples, source.shape[0], self.scale, self.heads, width, padded_width(width),
            tile.rows, tile.columns, len(self.tables.geometry[2]),
            *(bank is not None for bank in self.sides.banks), self._exact,
            num_warps=tile.warps, num_stages=tile.stages, maxnreg=REGISTERS,
        )  # fmt: skip

    def add_to_sources(self, grads: list[Tensor], totals: list[Tensor]) -> None:
        """Adds to each source's [N, samples, C] the sums over its tokens' rows, or the tokens' own."""
        sides, tile = self.sides, self.tiles.tokens
        for operand, bank in enumerate(sides.banks):
            if bank is None:
                totals[self._operands[2 * operand]].add_(grads[operand])
        for _, operands in products_of(sides):
            first, last = operands[0], operands[-1]
            rows, C = self.rows(first), sides.channels
            blocks = math.ceil(C / tile.columns), math.ceil(self.samples / tile.samples)
            _kernel("backward", "token_gradients")[len(rows.groups[0]), *blocks](
                grads[first], grads[last], sides.banks[first], sides.banks[last], *rows.groups,
                rows.run_entry, totals[self._operands[2 * first]], self.samples, len(rows.groups[0]),
                0, 0, 0, sides.width, C, sides.width, True, len(operands) > 1, False,
                tile.rows // tile.samples, tile.samples, *tile[1:3], self._exact,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip

    def add_to_banks(self, grads: list[Tensor], totals: list[Tensor], again: bool) -> None:
        """Writes the entries' gradients [C, D], or adds to them if `again`."""
        sides, tile = self.sides, self.tiles.banks
        blocks = math.ceil(sides.channels / tile.rows) * math.ceil(sides.width / tile.columns)
        for operand, bank in enumerate(sides.banks):
            if bank is None:
                continue
            rows, total = self.rows(operand), totals[self._operands[2 * operand + 1]]
            _kernel("backward", "bank_gradients")[blocks, len(rows.run_entry), 1](
                sides.sources[operand], grads[operand], rows.token, rows.token, rows.run_start,
                rows.run_entry, rows.again, total, total, total, self.samples, 0, 0, 0, 0, 0, 0,
                sides.channels, sides.width, again, *tile[:3], self._exact,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip


def _kernel(module: str, name: str) -> Any:
    """A Triton kernel, imported at its first launch: who launches none needs no triton."""
    return getattr(import_module(f"models.ops.fused.{module}"), name)


def tile_numbers(tiles: tuple[Tile, ...]) -> list[int]:
    return [int(number) for tile in tiles for number in tile]
