"""Every pair of the bands is in exactly one step, and every row in one run."""

import numpy as np
import pytest

from models.dealing import deal
from models.offsets import OffsetGrid
from models.ops.fused.bands.tables import geometry_of, rows_of, visits_of
from models.ops.walk.schedule import whole_schedule

GRIDS = [
    OffsetGrid((19,), causal=True, share="log"),
    OffsetGrid((5, 6), class_token=True, share="log"),
    OffsetGrid((3, 4, 3), share="clip(1)"),
    OffsetGrid((3, 3), class_token=True, share="clip(0)"),
]


def schedules(grid):
    whole = whole_schedule(grid, row_work=1e6)
    return [whole, *(share.schedule(whole) for share in deal(whole, 2))]


def pairs_of_steps(schedule, own_is_query):
    """How often each pair (query, key) is met, by the tables as the kernels read them."""
    geometry = geometry_of(schedule)
    visits = visits_of(schedule, 4, 8)
    own, met = visits if own_is_query else visits[::-1]
    found = np.zeros((schedule.grid.num_tokens,) * 2, dtype=int)
    for tile, tokens in enumerate(own.tokens):
        for visit in range(own.visits[tile], own.visits[tile + 1]):
            block = own.visit_block[visit]
            for step in range(own.steps[visit], own.steps[visit + 1]):
                others = met.tokens[own.step_tile[step]]
                query, key = (tokens, others) if own_is_query else (others, tokens)
                i, j = query[query >= 0], key[key >= 0]
                inside = (geometry.query_row[block, i] >= 0)[:, None] & (geometry.key_row[block, j] >= 0)
                delta = geometry.place[:, i, None] - geometry.place[:, None, j]
                least, greatest = geometry.band[block].T[:, :, None, None]
                inside &= ((delta >= least) & (delta <= greatest)).all(0)
                found[np.ix_(i, j)] += inside
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_pair_is_met_once_from_either_side(grid):
    whole, *parts = schedules(grid)
    exists = grid.table.numpy() >= 0
    for own_is_query in (True, False):
        assert (pairs_of_steps(whole, own_is_query) == exists).all()
        assert (sum(pairs_of_steps(part, own_is_query) for part in parts) == exists).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_rows_of_an_entry_are_one_run(grid):
    schedule = whole_schedule(grid, row_work=1e6)
    for rows, order, count in zip(
        geometry_of(schedule)[:2], rows_of(schedule).values(), schedule.rows, strict=True
    ):
        assert sorted(rows[rows >= 0]) == list(range(count)) == list(range(order.pairs.run_start[-1]))
        assert order.pairs.run_entry.tolist() == list(range(grid.num_entries))
        block, token = (rows >= 0).nonzero()
        assert (order.pairs.query[rows[block, token]] == token).all()


def test_a_schedule_in_bands_unrolls_to_single_offsets():
    for grid in GRIDS:
        for schedule in schedules(grid):
            blocks = [b for blocks in schedule.by_offset.classes for b in blocks]
            assert all(block.band is None for block in blocks)
            assert schedule.by_offset.pairs == schedule.pairs
            assert schedule.by_offset.num_entries == schedule.num_entries
