"""Layers whose offsets share entries equal the equations, however their bands are cut."""

import pytest

from models import OffsetGrid, Translution
from models.mixers.translution import RELATIVE
from models.ops.walk import tiles
from models.ops.walk.schedule import Schedule
from tests.models.mixers.test_translution import (
    BATCH,
    DIM,
    HEAD_DIM,
    HEADS,
    assert_equal_with_gradients,
    naive_alpha,
    naive_full,
)


@pytest.fixture(params=[False, True], ids=["one tile", "many tiles"])
def tile_size(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(tiles, "LOGITS", 60)
        monkeypatch.setattr(tiles, "FEW", 1)
        monkeypatch.setattr(tiles, "CALLS", 1)
    tiles.tiling.cache_clear()
    yield
    tiles.tiling.cache_clear()


SHARED = [
    OffsetGrid((13,), causal=True, share="log"),
    OffsetGrid((13,), class_token=True, share="clip(2)"),
    OffsetGrid((5, 4), class_token=True, share="clip(1)"),
    OffsetGrid((5, 4), class_token=True, share="clip(0)"),
    OffsetGrid((6, 5), share="log"),
    OffsetGrid((3, 4, 4), class_token=True, share="clip(1)"),
]


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("grid", SHARED, ids=str)
def test_shared_entries_equal_naive(grid, relative, rank, tile_size):
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, relative, rank=rank)
    layer.schedule = Schedule(grid, [(block,) for block in grid.bands])  # however small the grid is
    assert_equal_with_gradients(layer, naive_full if rank is None else naive_alpha)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_batches_of_overlapping_windows_equal_naive(causal, rank, monkeypatch):
    """A window of a wide band reaches over several tiles of queries; the gradients of its keys are summed."""
    grid = OffsetGrid((80,), causal=causal, share="log")
    monkeypatch.setattr(tiles, "FEW", 4)
    tiles.tiling.cache_clear()
    cuts = [tiles.tiling(block, BATCH * HEADS) for block in grid.bands if block.band is not None]
    batched = [tile for cut in cuts for tile in cut.tiles if tile.repeats > 1]
    assert max(tile.length[1] / tile.length[0] for tile in batched) > 2
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, rank=rank)
    layer.schedule = Schedule(grid, [(block,) for block in grid.bands])
    assert_equal_with_gradients(layer, naive_full if rank is None else naive_alpha, 1e-9)
    tiles.tiling.cache_clear()


@pytest.mark.parametrize("memory", ["recompute", "keep"])
@pytest.mark.parametrize("workspace", [1, 4000], ids=["a sample at a time", "some"])
@pytest.mark.parametrize("grid", SHARED[:4], ids=str)
def test_shared_entries_equal_naive_under_every_policy(grid, workspace, memory, tile_size):
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, memory=memory, workspace=workspace)
    layer.schedule = Schedule(grid, [(block,) for block in grid.bands])
    assert_equal_with_gradients(layer, naive_full)


def test_bands_are_chosen_where_they_are_less_work():
    """By count: rows of a band are multiplied once, but a tile's pairs beyond it are computed too."""
    bands, offsets = ("log", "clip(1)"), ("none",)
    for share in (*bands, *offsets):
        layer = Translution(192, OffsetGrid((14, 14), share=share), 3, 64)
        assert layer.schedule.in_bands == (share in bands)
