"""Tile shapes of the fused kernels, by card and width.

Chosen by counting and by what compiles without spills: the second-level cache is the limit, so tiles are as
large as the registers allow. 128 rows × 128 columns do 64 floating-point operations per byte read.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from models.ops.cards import capability_at
from models.ops.device import device_type
from models.ops.fused.tables import group_shape, mean_steps

Card = Literal["ampere", "hopper", "blackwell", "interpreter"]
MAX_HEAD_WIDTH = 256


class Tile(NamedTuple):
    """rows × columns of a product's result, summed over `inner` numbers at a time.

    samples   of one token in the rows: rows // samples tokens make a group
    joint     keys and values are projected together, so that their rows are read once
    again     ∂out is read twice, rather than held in registers from its first use to its second
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    samples: int = 0
    joint: int = False
    again: int = False


class Tiles(NamedTuple):
    """The tiles of each kernel; those of attend and pairs are the widths of whole heads, padded."""

    attend: Tile
    pairs: Tile
    banks: Tile
    tokens: Tile


def card_of(device: torch.device) -> Card:
    if device_type(device) == "cpu":
        return "interpreter"
    major, _ = capability_at(device) or (9, 0)
    return "blackwell" if major == 10 else "hopper" if major == 9 else "ampere"


def padded_width(width: int) -> int:
    """Columns that a head takes: a power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


@lru_cache(maxsize=64)
def choose_tiles(
    card: Card, dtype: torch.dtype, shape: tuple[int, ...], batch: int, heads: int, width: int, channels: int
) -> Tiles:
    """For a grid of this shape, B samples, H heads of E and the wider C of the sources."""
    head = padded_width(width)
    if card == "interpreter":
        odd = heads % 2  # so that tests meet all paths
        small = Tile(16, head * (2 - odd), 16, 4, 2)
        heads_of = small._replace(joint=odd), small._replace(joint=True, again=1 - odd)
        tiles = Tiles(*heads_of, Tile(16, 32, 16, 4, 2), Tile(16, 32, 16, 4, 2))
    elif dtype == torch.float32:  # no or slow tensor cores
        small = Tile(min(64, 8192 // head), head, 16, 8, 2)
        tiles = Tiles(small, small, Tile(64, 64, 16, 8, 2), Tile(64, 64, 16, 8, 2))
    else:
        most, area = (64, 8192) if card == "ampere" else (128, 16384)  # columns, and numbers of a result
        wide = head * _fitting_heads(heads, most // head)
        inner = 32 if card == "ampere" else 64
        rows = min(128, area // wide)
        attend = Tile(rows, wide, inner, 8, 3, joint=rows * wide <= 8192)
        pairs = attend._replace(rows=area // max(wide, 64), joint=True, again=area > 8192)  # holds no output
        if card == "blackwell":
            pairs = pairs._replace(inner=32, stages=5)
        columns, stages = (128, 3) if card == "blackwell" else (256, 2)
        banks = _narrowed(Tile(128, columns, inner, 8, 3), width * heads)
        tokens = _narrowed(Tile(128, columns, inner, 8, stages), channels)
        tiles = Tiles(attend, pairs, banks, tokens)
    attend, tokens = (_grouped(tile, shape, batch) for tile in (tiles.attend, tiles.tokens))
    return Tiles(attend, tiles.pairs, tiles.banks, tokens)


def _fitting_heads(heads: int, most: int) -> int:
    """The largest power of two that divides the heads, at most `most`, at least 1."""
    return min(heads & -heads, 1 << max(most, 1).bit_length() - 1)


def _narrowed(tile: Tile, width: int) -> Tile:
    """With 128 columns where 256 would be half empty."""
    return tile._replace(columns=min(tile.columns, 128)) if width <= 128 else tile


def _grouped(tile: Tile, shape: tuple[int, ...], batch: int) -> Tile:
    """With as many samples in its rows as take the fewest steps over all groups."""

    def steps(samples: int) -> float:
        sides = group_shape(shape, tile.rows // samples)
        return mean_steps(shape, sides) * math.ceil(batch / samples)

    counts = [tile.rows >> p for p in range(tile.rows.bit_length())]
    return tile._replace(samples=min(counts, key=steps))
