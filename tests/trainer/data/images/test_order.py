"""The order of images: every one once an epoch, whoever reads it, out of a small buffer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.images.order import MOST_LANES, Order, default_lanes

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


def epoch_of(
    order: Order, epoch: int, start: int = 0, rank: int = 0, world: int = 1
) -> list[tuple[int, int]]:
    """What a rank reads of an epoch, as (shard, index), by lane."""
    lanes = [order.wanted(epoch, lane, start, rank, world) for lane in range(order.lanes)]
    return [pair for one in lanes for pair in zip(one.shard.tolist(), one.index.tolist(), strict=True)]


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 8), st.integers(1, 30), st.integers(0, 3), st.integers(1, 5))
def test_an_epoch_is_every_sample_once_over_all_ranks(counts, lanes, buffer, epoch, world):
    order = Order(counts, lanes, buffer, seed=1)
    every = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    read = [pair for rank in range(world) for pair in epoch_of(order, epoch, 0, rank, world)]
    assert sorted(read) == every


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 8), st.integers(1, 30), st.integers(0, 60))
def test_a_later_start_leaves_out_just_what_was_consumed(counts, lanes, buffer, start):
    order = Order(counts, lanes, buffer, seed=1)
    for lane in range(order.lanes):
        whole, rest = (order.wanted(1, lane, at, 0, 1).line.tolist() for at in (0, start))
        before = len(range(order.samples + lane, min(start, 2 * order.samples), order.lanes))
        assert rest == whole[before:]


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 4), st.integers(1, 40))
def test_a_lane_never_holds_more_than_its_share_of_the_buffer(counts, lanes, buffer):
    order = Order(counts, lanes, buffer, seed=0)
    for lane in range(order.lanes):
        line = order.wanted(0, lane, 0, 0, 1).line
        for done in range(len(line)):
            read = line[: done + 1].max()
            assert np.count_nonzero(line[done:] <= read) <= order.buffer


def test_seeds_epochs_and_neighbours_are_mixed():
    order, other = (Order([50] * 8, 4, 80, seed) for seed in (0, 1))
    assert epoch_of(order, 0) != epoch_of(order, 1)
    assert epoch_of(order, 0) != epoch_of(other, 0)
    line = order.wanted(0, 0, 0, 0, 1).line
    assert np.count_nonzero(np.diff(line) == 1) < len(line) / 4


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 2), (4, 1), (3, 2), (6, 3)])
def test_a_lane_belongs_to_one_worker_of_each_rank(world: int, workers: int):
    order = Order([7, 9, 8, 3, 5, 11, 2, 6], 8, 16, seed=0)
    for rank in range(world):
        numbers = order.numbers(0, order.samples // world, rank, world)
        owners: dict[int, set[int]] = {}
        for number, worker in zip(numbers, order.worker(numbers, world, workers), strict=True):
            owners.setdefault(int(number % order.lanes), set()).add(int(worker))
        assert all(len(each) == 1 for each in owners.values())


def test_ranks_that_divide_the_lanes_share_none():
    order = Order([10] * 8, 8, 16, seed=0)
    lanes = [{lane for lane in range(8) if order.wanted(0, lane, 0, rank, 4).line.size} for rank in range(4)]
    assert all(len(own) == 2 for own in lanes)
    assert len(set.union(*lanes)) == 8


@pytest.mark.parametrize(("shards", "lanes"), [(1, 1), (7, 4), (8, 8), (550, 512), (10_000, MOST_LANES)])
def test_the_default_is_a_power_of_two(shards: int, lanes: int):
    assert default_lanes(shards) == lanes
