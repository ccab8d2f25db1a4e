"""The flat lists that the operators of bands take, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from models.ops.fused.arguments import Sides
from models.ops.fused.bands.tiles import BandTiles
from models.ops.fused.tiles import Tile


class RowTables(NamedTuple):
    """The rows of one side: their tokens; the runs with their entries; tiles of rows; groups of tokens with
    the steps of their rows; and `again`, 1 for every run."""

    token: Tensor
    run_start: Tensor
    run_entry: Tensor
    tile_run: Tensor
    tile_first: Tensor
    groups: tuple[Tensor, ...]
    again: Tensor


class Tables(NamedTuple):
    """The rows and the visits of either side (tables.Visits), and the blocks' geometry (tables.Geometry)."""

    query: RowTables
    key: RowTables
    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    geometry: tuple[Tensor, ...]


def unflatten_tables(tables: Sequence[Tensor]) -> Tables:
    query, key = (_row_tables(*tables[start : start + 10]) for start in (0, 10))
    return Tables(query, key, tuple(tables[20:25]), tuple(tables[25:30]), tuple(tables[30:34]))


def _row_tables(
    token: Tensor, run_start: Tensor, run_entry: Tensor, tile_run: Tensor, tile_first: Tensor, *rest: Tensor
) -> RowTables:
    return RowTables(token, run_start, run_entry, tile_run, tile_first, rest[:-1], rest[-1])


def unflatten_band_tiles(tiles: Sequence[int]) -> BandTiles:
    size = len(Tile._fields)
    return BandTiles(*(Tile(*tiles[i : i + size]) for i in range(0, len(tiles), size)))


class Product(NamedTuple):
    """Operands (0 q, 1 k, 2 v) of one side that one launch projects from their source."""

    side: int
    operands: tuple[int, ...]


def products_of(sides: Sides) -> list[Product]:
    """The launches that project operands; keys and values of one source together."""
    q, k, v = (bank is not None for bank in sides.banks)
    if sides.share:
        return [*([Product(0, (0,))] if q else []), Product(1, (1, 2))]
    return [Product(min(i, 1), (i,)) for i, banked in enumerate((q, k, v)) if banked]
