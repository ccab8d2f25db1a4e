"""Tiles of a band: every pair of the band in one of them, and nothing else left unmasked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import OffsetGrid
from models.ops.walk import tiles
from models.ops.walk.tiles import Tiling, attended, mask

GRIDS = [
    OffsetGrid((40,), causal=True, share="log"),
    OffsetGrid((40,), causal=True, share="clip(3)"),
    OffsetGrid((23,), share="clip(2)"),
    OffsetGrid((7, 6), share="log"),
    OffsetGrid((6, 5), share="clip(1)"),
    OffsetGrid((6, 5), share="clip(0)"),
    OffsetGrid((3, 4, 5), share="clip(1)"),
    OffsetGrid((1, 9), share="log"),
]


@pytest.fixture(params=[(1 << 18, 32), (400, 4), (40, 1)], ids=["large", "small", "tiny"])
def sizes(request, monkeypatch):
    monkeypatch.setattr(tiles, "LOGITS", request.param[0])
    monkeypatch.setattr(tiles, "FEW", request.param[1])
    monkeypatch.setattr(tiles, "CALLS", request.param[1])


def met(block, cut):
    """How often each pair of the block's rectangles is in a tile and not masked: [queries, keys]."""
    rank = len(block.band)
    q, k = (
        torch.arange(torch.tensor([b - a for a, b in side]).prod()).view([b - a for a, b in side])
        for side in (block.queries, block.keys)
    )
    times = torch.zeros(q.numel(), k.numel(), dtype=torch.long)
    # head-major: groups, two dimensions for samples and heads, banded dimensions
    order = (*cut.groups, rank, rank + 1, *cut.banded)
    q, k = (t[..., None, None].permute(order) for t in (q, k))
    dim = len(cut.groups) + 2
    for tile in cut.tiles:
        for number in range(tile.repeats):
            sides = []
            for t, parts, length in ((q, tile.queries, tile.length[0]), (k, tile.keys, tile.length[1])):
                for axis, start, size in parts:
                    t = t.narrow(axis, start, size)
                if tile.repeats > 1:
                    t = t.narrow(dim, number * tile.length[0], length)
                sides.append(t.reshape(tile.groups, -1))
            bias = torch.zeros(sides[0].shape[1], sides[1].shape[1])
            for keys, geometry in tile.masked:
                bias[:, keys] += mask(geometry, bias.dtype, bias.device)
            for queries, keys in zip(*sides, strict=True):
                times[queries[:, None], keys[None]] += (bias == 0).long()
    return times


def inside(block):
    """Whether each pair of the rectangles is in the band."""
    q, k = (
        torch.cartesian_prod(*(torch.arange(a, b) for a, b in side)).view(-1, len(side))
        for side in (block.queries, block.keys)
    )
    delta = q[:, None] - k[None]
    least, greatest = (torch.tensor(side) for side in zip(*block.band, strict=True))
    return ((delta >= least) & (delta <= greatest)).all(-1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_pair_of_a_band_is_in_one_tile(grid, sizes):
    bands = [block for block in grid.bands if block.band is not None]
    assert bands
    for block in bands:
        cut = Tiling(block, 2, tiles.LOGITS)
        assert torch.equal(met(block, cut), inside(block).long())
        assert int(inside(block).sum()) == block.pairs
        for tile in cut.tiles:
            assert 2 * tile.groups * tile.repeats * tile.logits <= tiles.LOGITS or tile.repeats == 1


@given(st.integers(2, 60), st.integers(0, 6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_pair_of_a_sequence_is_in_one_band(length, radius, causal):
    grid = OffsetGrid((length,), causal=causal, share=f"clip({radius})")
    assert sum(block.pairs for block in grid.bands) == grid.num_pairs
    for block in grid.bands:
        if block.band is not None:
            assert torch.equal(met(block, Tiling(block, 4, tiles.LOGITS)), inside(block).long())


def test_equal_tiles_of_a_sequence_are_one_batch():
    """1,022 queries of a narrow band are a few calls, not one for each run of queries."""
    (block,) = (b for b in OffsetGrid((1024,), causal=True, share="log").bands if b.band == ((2, 3),))
    tiles_of_band = Tiling(block, 6, tiles.LOGITS).tiles
    assert sum(tile.repeats for tile in tiles_of_band) >= 3 * len(tiles_of_band) > 0


def test_wide_bands_waste_little_beyond_the_band():
    grid = OffsetGrid((1024,), causal=True, share="clip(3)")
    wide = max(grid.bands, key=lambda block: block.pairs)
    assert wide.pairs < attended(wide) < 1.25 * wide.pairs
