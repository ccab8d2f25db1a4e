"""The tables name every pair once, with its entry, in steps that a group of tokens can take together."""

import numpy as np
import pytest

from models.offsets import OffsetGrid
from models.ops.fused.tables import group_shape, order_pairs
from models.ops.walk.schedule import whole_schedule

GRIDS = [
    OffsetGrid((3, 5), class_token=True),
    OffsetGrid((9,), causal=True),
    OffsetGrid((2, 3, 2)),
    OffsetGrid((4, 3), class_token=True, share="log"),
]
CHUNKS = [1, 20, 10**6]


def entries(order, pairs, tokens):
    """[N, N]: the entry that the runs give to these pairs, −1 for others."""
    table = np.full((tokens, tokens), -1)
    table[order.pairs.query[pairs], order.pairs.key[pairs]] = order.pairs.run_entry[order.run[pairs]]
    return table


@pytest.mark.parametrize("chunk_pairs", CHUNKS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_runs_give_each_pair_its_entry(grid, chunk_pairs):
    order = order_pairs(whole_schedule(grid, in_bands=False), chunk_pairs)
    assert len(order.pairs.query) == grid.num_pairs
    np.testing.assert_array_equal(
        entries(order, np.arange(grid.num_pairs), grid.num_tokens), grid.table.numpy()
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_chunk_meets_an_entry_in_one_run_and_later_chunks_know_it(grid):
    order = order_pairs(whole_schedule(grid, in_bands=False), 20)
    seen = set()
    for start, stop in zip(order.chunk_runs, order.chunk_runs[1:], strict=False):
        here = order.pairs.run_entry[start:stop].tolist()
        assert len(set(here)) == len(here)
        assert order.pairs.run_again[start:stop].tolist() == [entry in seen for entry in here]
        seen.update(here)
    assert order.spans_chunks == (grid.share != "none")


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize("chunk_pairs", CHUNKS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_steps_of_groups_take_each_pair_once_at_its_token(grid, chunk_pairs, size):
    order = order_pairs(whole_schedule(grid, in_bands=False), chunk_pairs)
    for side in ("query", "key"):
        groups, taken = order.groups(side, size)
        token = getattr(order.pairs, side)
        met = []
        for chunk, (start, stop) in enumerate(zip(order.chunk_pairs, order.chunk_pairs[1:], strict=False)):
            steps = 0
            for group, tokens in enumerate(groups.tokens):
                for step in range(groups.bounds[chunk, group], groups.bounds[chunk + 1, group]):
                    places = np.flatnonzero(groups.step_pair[step] >= 0)
                    pairs = groups.step_pair[step, places]
                    assert (token[pairs] == tokens[places]).all()
                    assert (order.run[pairs] == groups.step_run[step]).all()
                    assert ((start <= pairs) & (pairs < stop)).all()
                    met += pairs.tolist()
                    steps += 1
            assert taken[chunk + 1] - taken[chunk] == steps
        assert sorted(met) == list(range(grid.num_pairs))


@pytest.mark.parametrize(("rows", "batch"), [(16, 3), (8, 20)])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_cover_the_rows_of_each_run(grid, rows, batch):
    order = order_pairs(whole_schedule(grid, in_bands=False), 20)
    tiles, starts = order.tiles(rows, batch)
    lengths = np.diff(order.pairs.run_start) * batch
    expected = [(run, first) for run, length in enumerate(lengths) for first in range(0, length, rows)]
    assert list(zip(tiles.run.tolist(), tiles.first.tolist(), strict=True)) == expected
    for start, run in zip(starts[:-1], order.chunk_runs[:-1], strict=True):
        assert (tiles.run[start], tiles.first[start]) == (run, 0)


def test_programs_walk_in_step():
    """At P = 1 the n-th step of every query of a full grid is of the same class."""
    grid = OffsetGrid((4, 3))
    order = order_pairs(whole_schedule(grid, in_bands=False), 10**6)
    groups, _ = order.groups("query", 1)
    first = groups.bounds[0]
    for number, blocks in enumerate(grid.classes):
        runs = groups.step_run[first + number]
        assert set(order.pairs.run_entry[runs]) == {block.entry for block in blocks}


def test_a_group_is_the_rectangle_with_the_fewest_steps():
    """Two by two divides 14 columns evenly; one by four would leave two in sixteen empty."""
    assert group_shape((14, 14), 4) == (2, 2)
    assert group_shape((1024,), 16) == (16,)
