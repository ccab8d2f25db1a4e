"""Index tables of bands: which rows an entry multiplies, and which tiles of tokens meet in which block.

A row is a token in a block; rows of one bank entry are consecutive, a run. Blocks are numbered in the order
of their rows. All tables are int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from models.offsets import Block, OffsetGrid, Range
from models.ops.fused.tables import Groups, PairOrder, Pairs, Tiles, group_tokens
from models.ops.walk.rows import Side
from models.ops.walk.schedule import Schedule

FAR = 1 << 30  # beyond any offset: the class token's blocks have no band


class Visits(NamedTuple):
    """Tiles of tokens, tokens[G, size] (−1 for none), those with most steps first; tile g visits the blocks
    visit_block[visits[g]] … visit_block[visits[g + 1]], and visit t meets the other side's tiles
    step_tile[steps[t]] … step_tile[steps[t + 1]]."""

    tokens: np.ndarray
    visits: np.ndarray
    visit_block: np.ndarray
    steps: np.ndarray
    step_tile: np.ndarray


class Geometry(NamedTuple):
    """Per block the row of each token, query_row and key_row[blocks, N] (−1 for none); place[dimensions, N]
    of the tokens; and the offsets of each block, band[blocks, dimensions, 2], least and greatest."""

    query_row: np.ndarray
    key_row: np.ndarray
    place: np.ndarray
    band: np.ndarray


@lru_cache(maxsize=64)
def rows_of(schedule: Schedule) -> dict[Side, PairOrder]:
    """The rows of each side, numbered as the fused kernels number pairs: they multiply rows the same way."""
    return {side: _order(schedule, side) for side in ("query", "key")}


@lru_cache(maxsize=64)
def geometry_of(schedule: Schedule) -> Geometry:
    grid, blocks = schedule.grid, blocks_of(schedule)
    positions = _positions(grid)
    rows = np.full((2, len(blocks), grid.num_tokens), -1, dtype=np.int32)
    for side, table in enumerate(rows):
        count = 0
        for number, block in enumerate(blocks):
            tokens = _tokens(positions, block.keys if side else block.queries)
            table[number, tokens] = np.arange(count, count + len(tokens))
            count += len(tokens)
    place = np.zeros((len(grid.shape), grid.num_tokens), dtype=np.int32)
    place[:, grid.class_token :] = np.indices(grid.shape).reshape(len(grid.shape), -1)
    band = np.array([_band(block, len(grid.shape)) for block in blocks], dtype=np.int32)
    return Geometry(rows[0], rows[1], place, band.reshape(len(blocks), len(grid.shape), 2))


@lru_cache(maxsize=64)
def visits_of(schedule: Schedule, query_size: int, key_size: int) -> tuple[Visits, Visits]:
    """Of tiles of so many queries, and of tiles of so many keys."""
    grid, geometry = schedule.grid, geometry_of(schedule)
    queries, keys = group_tokens(grid, query_size), group_tokens(grid, key_size)
    in_block = [_in_block(rows, tiles) for rows, tiles in zip(geometry[:2], (queries, keys), strict=True)]
    met = np.ones((len(geometry.band), len(queries), len(keys)), dtype=bool)
    for dimension, place in enumerate(geometry.place):
        query, key = (
            _reach(place, rows, tiles) for rows, tiles in zip(geometry[:2], (queries, keys), strict=True)
        )
        least, greatest = (geometry.band[:, dimension, end, None, None] for end in (0, 1))
        met &= query[0][:, :, None] - key[1][:, None] <= greatest
        met &= query[1][:, :, None] - key[0][:, None] >= least
    met &= in_block[0][:, :, None] & in_block[1][:, None]
    most_queries, most_keys = (np.argsort(-met.sum((0, axis)), kind="stable") for axis in (2, 1))
    met = met[:, most_queries][:, :, most_keys]
    query_blocks, key_blocks = in_block[0][:, most_queries], in_block[1][:, most_keys]
    return (
        _visits(queries[most_queries], query_blocks.T, met.transpose(1, 0, 2)),
        _visits(keys[most_keys], key_blocks.T, met.transpose(2, 0, 1)),
    )


def met_logits(schedule: Schedule, query_size: int, key_size: int) -> int:
    """Logits of all steps, those of pairs beyond the bands included."""
    return len(visits_of(schedule, query_size, key_size)[0].step_tile) * query_size * key_size


@lru_cache(maxsize=64)
def blocks_of(schedule: Schedule) -> list[Block]:
    """All blocks, those of one entry next to each other."""
    blocks = [block for blocks in (*schedule.classes, schedule.special_blocks) for block in blocks]
    return sorted(blocks, key=lambda block: block.entry)


def row_groups(order: PairOrder, size: int) -> Groups:
    """Groups of `size` tokens with their rows, for sums over a token's rows."""
    return order.groups("query", size)[0]


def row_tiles(order: PairOrder, rows: int, samples: int) -> Tiles:
    """Tiles of `rows` rows (row, sample), each within one run."""
    return order.tiles(rows, samples)[0]


def _order(schedule: Schedule, side: Side) -> PairOrder:
    positions = _positions(schedule.grid)
    blocks = blocks_of(schedule)
    tokens = [_tokens(positions, b.queries if side == "query" else b.keys) for b in blocks]
    sizes = np.array([len(own) for own in tokens], dtype=np.int64)
    entries = np.array([block.entry for block in blocks], dtype=np.int64)
    of_run, first, run_of_block = np.unique(entries, return_index=True, return_inverse=True)
    starts = np.concatenate([[0], sizes.cumsum()])
    token = np.concatenate([*tokens, np.zeros(0, dtype=np.int64)]).astype(np.int32)
    run_start = np.append(starts[:-1][first], starts[-1]).astype(np.int32)
    again = np.zeros(len(of_run), dtype=np.int32)
    step = np.repeat(starts[:-1], sizes)
    return PairOrder(
        schedule.grid,
        Pairs(token, token, run_start, of_run.astype(np.int32), again),
        np.repeat(run_of_block, sizes),
        {"query": step, "key": step},
        (0, len(token)),
        (0, len(of_run)),
    )


def _positions(grid: OffsetGrid) -> np.ndarray:
    return np.arange(grid.grid_tokens).reshape(grid.shape) + grid.class_token


def _tokens(positions: np.ndarray, rectangle: tuple[Range, ...] | None) -> np.ndarray:
    if rectangle is None:
        return np.zeros(1, dtype=np.int64)
    return positions[tuple(slice(start, stop) for start, stop in rectangle)].flatten()


def _band(block: Block, dimensions: int) -> Sequence[Range]:
    if block.queries is None or block.keys is None:
        return [(-FAR, FAR)] * dimensions
    if block.band is not None:
        return block.band
    return [
        (query - key, query - key) for (query, _), (key, _) in zip(block.queries, block.keys, strict=True)
    ]


def _in_block(rows: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """[blocks, tiles]: whether a tile has a token of the block."""
    inside: np.ndarray = (rows[:, tiles] >= 0) & (tiles >= 0)
    return np.asarray(inside.any(2))


def _reach(place: np.ndarray, rows: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[blocks, tiles]: the least and the greatest place of the tile's tokens in the block."""
    inside = (rows[:, tiles] >= 0) & (tiles >= 0)
    at = np.broadcast_to(place[tiles], inside.shape)
    return np.where(inside, at, FAR // 2).min(2), np.where(inside, at, -FAR // 2).max(2)


def _visits(tokens: np.ndarray, in_block: np.ndarray, met: np.ndarray) -> Visits:
    """For in_block[tiles, blocks] and met[tiles, blocks, tiles of the other side]."""
    tile, block = in_block.nonzero()
    met = met[tile, block]
    ends = (np.concatenate([[0], counts.cumsum()]) for counts in (in_block.sum(1), met.sum(1)))
    visits, steps = (np.asarray(end, dtype=np.int32) for end in ends)
    return Visits(
        tokens.astype(np.int32), visits, block.astype(np.int32), steps, met.nonzero()[1].astype(np.int32)
    )
