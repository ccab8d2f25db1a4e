"""Divides a block with a band of offsets into tiles: rectangles of queries against the window of keys
that they meet.

Dimensions in which the band is a single offset pair the tokens one to one: they make a batch of groups.
The others are cut so that the work is least. Pairs of a tile outside the band are masked; along a sequence
they are only at the window's two ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from models.offsets import Block, Range
from models.ops.device import on_host

CARD_LOGITS = 1 << 25  # of a tile on a card, which wants few, large calls
LOGITS = 3 << 16  # of a tile, unless it has few queries: about what one core's caches hold
ROW = 64  # logits that take as much memory as a row of a batch, which is copied
CROWDING = 0.2  # the power with which time grows beyond that
CALLS = 10_000  # logits that take as long as the calls of a tile
FEW = 32  # queries: products of fewer rows are slow


Sides = tuple[tuple[int, int, int], ...]  # dimension, start and length of a part of a tensor


class Geometry(NamedTuple):
    """Queries, keys and the band between them, by dimension, relative to the first key."""

    queries: tuple[Range, ...]
    keys: tuple[Range, ...]
    band: tuple[Range, ...]


class Tile(NamedTuple):
    """Queries and keys of a group: parts of head-major views.

    masked   runs of the window's keys, each with the geometry of its mask
    length   of the queries and of the keys, along the first banded dimension
    logits   of a group; `rows` on its longer side
    repeats  so many equal tiles in one, each `length` queries further than the last
    groups   in so many groups
    """

    queries: Sides
    keys: Sides
    masked: tuple[tuple[slice, Geometry], ...]
    length: tuple[int, int]
    logits: int
    rows: int
    groups: int
    repeats: int = 1


class Tiling:
    """The tiles of a block with a band.

    groups   the dimensions of a single offset; `group_size` is their product
    banded   the other dimensions; head-major views are [*groups, B, H, *banded, …]
    tiles    every query of the block is in one, and meets a key there
    """

    def __init__(self, block: Block, batch: int, most: int) -> None:
        assert block.queries is not None
        assert block.keys is not None
        assert block.band is not None
        queries, keys, band = block.queries, block.keys, block.band
        self.groups = tuple(d for d, (least, greatest) in enumerate(band) if least == greatest)
        self.banded = tuple(d for d in range(len(band)) if d not in self.groups)
        self.group_size = math.prod(queries[d][1] - queries[d][0] for d in self.groups)
        inside = Geometry(*(tuple(ranges[d] for d in self.banded) for ranges in (queries, keys, band)))
        tiles = list(_cut(inside, batch, most, self.group_size, len(self.groups) + 2))
        if len(self.banded) == 1:
            tiles = _in_batches(tiles, batch * self.group_size, most)
        first = queries[self.groups[0]] if self.groups else (0, 1)
        whole = batch * self.group_size
        self.tiles = [part for tile in tiles for part in _by_groups(tile, first, whole, most)]


@lru_cache(maxsize=8192)
def tiling(block: Block, batch: int, device_type: str = "cpu") -> Tiling:
    """The tiles of a block for `batch` heads of all samples, built once."""
    return Tiling(block, batch, LOGITS if device_type == "cpu" else CARD_LOGITS)


def attended(block: Block, batch: int = 16) -> int:
    """The pairs that attention computes, with those beyond the band."""
    if block.band is None:
        return block.pairs
    cut = tiling(block, batch)
    return sum(tile.groups * tile.repeats * tile.logits for tile in cut.tiles)


class TileSize(NamedTuple):
    """The most logits, and rows on either side, that a tile has for one head of one sample."""

    logits: int
    rows: int


def largest_tile(block: Block, batch: int, device_type: str) -> TileSize:
    cut = tiling(block, batch, device_type)
    logits, rows = (
        max(sizes)
        for sizes in zip(*((t.repeats * t.logits, t.repeats * t.rows) for t in cut.tiles), strict=True)
    )
    return TileSize(cut.group_size * logits, cut.group_size * rows)


def _cut(whole: Geometry, batch: int, most: int, groups: int, first: int) -> Iterator[Tile]:
    lengths = _best_lengths(whole, batch * groups, most)
    starts = (range(*queries, n) for queries, n in zip(whole.queries, lengths, strict=True))
    for corner in itertools.product(*starts):
        queries = tuple(
            (a, min(a + n, stop)) for a, n, (_, stop) in zip(corner, lengths, whole.queries, strict=True)
        )
        window = tuple(map(_window, queries, whole.keys, whole.band))
        yield Tile(
            _narrow(queries, whole.queries, first),
            _narrow(window, whole.keys, first),
            _masked(queries, window, whole.band),
            (queries[0][1] - queries[0][0], window[0][1] - window[0][0]),
            math.prod(b - a for a, b in (*queries, *window)),
            max(math.prod(b - a for a, b in side) for side in (queries, window)),
            groups,
        )


def _in_batches(tiles: list[Tile], batch: int, most: int) -> list[Tile]:
    """Joins tiles of a sequence that are equal but for their place, as many as a tile may have logits."""
    joined: list[Tile] = []
    for tile in tiles:
        last = joined[-1] if joined else tile
        numbers = tile.logits + ROW * sum(tile.length)
        fits = batch * numbers * (last.repeats + 1) <= most
        if joined and fits and (tile.length, tile.masked) == (last.length, last.masked) and tile.keys:
            (dim, start, length), (_, key, window) = *last.queries, *last.keys
            if (tile.queries[0][1], tile.keys[0][1]) == (start + length, key + last.repeats * last.length[0]):
                longer = (dim, start, length + tile.length[0]), (dim, key, window + tile.length[0])
                joined[-1] = last._replace(queries=(longer[0],), keys=(longer[1],), repeats=last.repeats + 1)
                continue
        joined.append(tile)
    return joined


def _by_groups(tile: Tile, first: Range, batch: int, most: int) -> list[Tile]:
    """The tile for some groups at a time, along the first of their dimensions, if it is too large."""
    size = first[1] - first[0]
    numbers = batch * tile.repeats * (tile.logits + ROW * sum(tile.length))
    length = max(1, -(-size // max(1, -(-numbers // (2 * most)))))
    if length >= size:
        return [tile]
    parts = [((0, start, min(length, size - start)),) for start in range(0, size, length)]
    return [
        tile._replace(
            queries=part + tile.queries, keys=part + tile.keys, groups=tile.groups * part[0][2] // size
        )
        for part in parts
    ]


def _best_lengths(whole: Geometry, batch: int, most: int) -> tuple[int, ...]:
    """The sides of a tile for which logits and calls take the least time."""
    sides = [_side_costs(*ranges, few=len(whole.queries) > 1) for ranges in zip(*whole, strict=True)]

    def seconds(choice: tuple[_SideCost, ...]) -> float:
        rows, window = (
            math.prod(sides) for sides in zip(*((c.length, c.window) for c in choice), strict=True)
        )
        logits = batch * math.prod(side.logits for side in choice) * max(1.0, FEW / rows)
        numbers = batch * (rows * window + ROW * (rows + window))
        tiles = math.prod(side.tiles for side in choice)
        if len(sides) == 1:  # most of them in batches
            tiles = 2 + max(1, tiles * numbers // most)
        return CALLS * tiles + logits * max(1.0, numbers / most) ** CROWDING

    return tuple(side.length for side in min(itertools.product(*sides), key=seconds))


class _SideCost(NamedTuple):
    """Cutting one dimension into tiles of a length: how many, the largest window, the logits in all."""

    length: int
    tiles: int
    window: int
    logits: int


def _side_costs(queries: Range, keys: Range, band: Range, few: bool) -> list[_SideCost]:
    size = queries[1] - queries[0]
    lengths = {min(n, size) for n in ((1, 2, 3, 4, 6, 8, 12, 16, 24) if few else ())}
    lengths |= {min(FEW << i, size) for i in range(size.bit_length())}
    found = []
    for length in sorted(lengths):
        tiles = [(a, min(a + length, queries[1])) for a in range(*queries, length)]
        windows = [stop - start for start, stop in (_window(tile, keys, band) for tile in tiles)]
        logits = sum((b - a) * window for (a, b), window in zip(tiles, windows, strict=True))
        found.append(_SideCost(length, len(tiles), max(windows), logits))
    return found


def _window(queries: Range, keys: Range, band: Range) -> Range:
    """The keys that any of these queries meets."""
    return max(queries[0] - band[1], keys[0]), min(queries[1] - band[0], keys[1])


def _masked(
    queries: Sequence[Range], window: Sequence[Range], band: Sequence[Range]
) -> tuple[tuple[slice, Geometry], ...]:
    rest = math.prod(b - a for a, b in window[1:])
    edges = _edges(queries[0], window[0], band[0]) if len(queries) == 1 else [window[0]]
    found = []
    for edge in edges:
        geometry = _relative(queries, (edge, *window[1:]), band)
        if not _all_inside(geometry):
            found.append((slice((edge[0] - window[0][0]) * rest, (edge[1] - window[0][0]) * rest), geometry))
    return tuple(found)


def _edges(queries: Range, window: Range, band: Range) -> list[Range]:
    """The keys of a window that some of the queries are too near to or too far from."""
    far = max(window[0], min(queries[1] - 1 - band[1], window[1]))
    near = min(window[1], max(queries[0] - band[0] + 1, window[0]))
    if near < far:
        return [window]
    return [edge for edge in ((window[0], far), (near, window[1])) if edge[0] < edge[1]]


def _narrow(inner: Sequence[Range], outer: Sequence[Range], first: int) -> Sides:
    return tuple(
        (dim, a - start, b - a)
        for dim, ((a, b), (start, stop)) in enumerate(zip(inner, outer, strict=True), first)
        if (a, b) != (start, stop)
    )


def _relative(queries: Sequence[Range], keys: Sequence[Range], band: Sequence[Range]) -> Geometry:
    """The same geometry wherever on the grid it lies."""
    return Geometry(
        tuple((a - k, b - k) for (a, b), (k, _) in zip(queries, keys, strict=True)),
        tuple((0, stop - start) for start, stop in keys),
        tuple(band),
    )


def _all_inside(geometry: Geometry) -> bool:
    return all(
        a - (k_stop - 1) >= least and b - 1 - k <= greatest
        for (a, b), (k, k_stop), (least, greatest) in zip(*geometry, strict=True)
    )


@lru_cache(maxsize=8192)
@on_host
def mask(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 for pairs inside the band and −inf for others, [queries, keys]."""
    inside = torch.ones(1, 1, dtype=torch.bool)
    for queries, keys, (least, greatest) in zip(*geometry, strict=True):
        delta = torch.arange(*queries)[:, None] - torch.arange(*keys)[None]
        near = (delta >= least) & (delta <= greatest)
        inside = (inside[:, None, :, None] & near[None, :, None, :]).flatten(0, 1).flatten(1, 2)
    return torch.zeros(inside.shape, dtype=dtype).masked_fill_(~inside, -torch.inf).to(device)
