"""Tile shapes of the kernels of bands, by card and width: as large as compiles without spills."""

from __future__ import annotations

from typing import NamedTuple

import torch

from models.ops.fused.bands.tables import met_logits
from models.ops.fused.tiles import Card, Tile, choose_tiles, padded_width
from models.ops.walk.schedule import Schedule

WASTE = 1.7  # more logits than the small tiles' are too many
REGISTERS = 248  # a thread may have in attention: left alone, the assembler spills a few for more programs


class BandTiles(NamedTuple):
    """rows    of the rows' products
    attend  queries × keys of each step of attention
    banks   of the entries' gradients
    tokens  of the tokens' gradients
    """

    rows: Tile
    attend: Tile
    banks: Tile
    tokens: Tile


def choose_band_tiles(
    card: Card, dtype: torch.dtype, schedule: Schedule, samples: int, heads: int, width: int, channels: int
) -> BandTiles:
    """For so many samples, H heads of E and the wider C of the sources."""
    shape = schedule.grid.shape
    _, _, banks, tokens = choose_tiles(card, dtype, shape, samples, heads, width, channels)
    if card == "interpreter":
        return BandTiles(Tile(16, 32, 16, 4, 2), Tile(16, 16, 0, 4, 2), banks, tokens)
    if dtype == torch.float32:
        side = 32 if padded_width(width) <= 64 else 16
        return BandTiles(Tile(64, 64, 16, 8, 2), Tile(side, side, 0, 8, 1), banks, tokens)
    rows = banks._replace(inner=tokens.inner, stages=tokens.stages)
    return BandTiles(rows, _attend(card, schedule, padded_width(width)), banks, tokens)


def _attend(card: Card, schedule: Schedule, head: int) -> Tile:
    """Larger tiles take fewer steps, and more logits beyond the bands; on Ampere they spill."""
    small = Tile(32, 32, 0, 8 if head > 128 else 4, 1 if head > 128 and card != "blackwell" else 2)
    if head > 64 or card == "ampere":
        return small
    large = Tile(64, 64, 0, 8, 2)
    many, few = (met_logits(schedule, tile.rows, tile.columns) for tile in (large, small))
    return small if many > WASTE * few else large
