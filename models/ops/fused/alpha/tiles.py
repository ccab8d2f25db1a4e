"""Tile shapes of α-Translution's kernels, by card and dtype.

Chosen by counting and by what compiles without spills. The relative kernels are held back by the second-level
cache: a tile's rows share the bank entry that it loads, so tiles have as many rows as the registers allow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.ops.cards import capability_at
from models.ops.device import device_type

MOST_WIDTH = 128  # padded columns H·R of the narrow rows


class Geometry(NamedTuple):
    """How H heads of R narrow dimensions are padded: CHUNKS chunks of HB heads × RP columns."""

    heads: int
    rank: int
    padded_rank: int
    chunk_heads: int
    chunks: int

    @property
    def width(self) -> int:
        """Padded columns in products."""
        return self.chunks * self.chunk_heads * self.padded_rank

    @property
    def whole(self) -> int:
        """Padded columns where all are in one tile."""
        return _power_of_two(self.width)


class Tile(NamedTuple):
    """A tile of rows of a relative kernel: tokens or pairs × samples.

    apart   the registers hold the sums of one bank only: query and key banks take a launch each
    """

    rows: int
    warps: int
    stages: int
    apart: bool = False

    def samples(self, batch: int) -> int:
        return min(self.rows, _power_of_two(batch))


INTERPRETED = Tile(16, 1, 1)  # on the CPU, small enough to have edges in small tests


class DenseTile(NamedTuple):
    """A tile of a dense kernel: samples × own tokens × tokens that it walks over."""

    samples: int
    own: int
    others: int
    warps: int
    stages: int


def geometry(heads: int, rank: int) -> Geometry:
    """Chunks of 32 columns, or of the 16 or 64 that leave fewer columns empty."""
    padded = _power_of_two(rank)
    choices = []
    for columns in (32, 64, 16):
        if columns >= padded:
            chunk_heads = columns // padded
            choices.append(Geometry(heads, rank, padded, chunk_heads, -(-heads // chunk_heads)))
    return (
        min(choices, key=lambda choice: choice.width) if choices else Geometry(heads, rank, padded, 1, heads)
    )


def owner_tile(x: Tensor) -> Tile:
    """Of the kernels that own tokens."""
    card = generation(x)
    if card == 0:
        return INTERPRETED
    if x.dtype != torch.bfloat16:
        return Tile(32, 8, 1)
    if card == 9:
        return Tile(256 if x.shape[2] <= 96 else 128, 8, 2)
    return Tile(128, 8, 2 if card == 8 else 1)


def entry_tile(x: Tensor) -> Tile:
    """Of the kernels that own bank entries."""
    card = generation(x)
    if card == 0:
        return INTERPRETED
    if x.dtype != torch.bfloat16:
        return Tile(32, 8, 1, apart=True)
    if card == 8:
        return Tile(64, 8, 1, apart=True)
    return Tile(128 if x.shape[2] <= 96 else 64, 8, 1)


def sums_at_once(tile: Tile, query: bool, key: bool) -> list[tuple[bool, bool]]:
    """Which of the banks' gradients that there are each launch sums: (query, key)."""
    return [(True, False), (False, True)] if tile.apart and query and key else [(query, key)]


def dense_tile(x: Tensor, head_width: int) -> DenseTile:
    card = generation(x)
    if card == 0:
        return DenseTile(4, 8, 8, 1, 1)
    if x.dtype != torch.bfloat16 or head_width > 64:
        return DenseTile(8, 16, 16, 8, 1)
    return DenseTile(8, 32, 16, 8, 2 if card == 9 else 1)


def generation(x: Tensor) -> int:
    """Of the card: 8 for an A100, 9 for an H100 (and for the bare meta device), 10 for a B200; 0 for none."""
    if device_type(x.device) == "cpu":
        return 0
    return (capability_at(x.device) or (9, 0))[0]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
