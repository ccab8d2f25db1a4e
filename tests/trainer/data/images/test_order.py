"""The order of images: each once an epoch for any number of ranks, with a small buffer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.images.order import MAX_LANES, Order, default_lanes

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


def epoch_of(order: Order, epoch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """A rank's samples of an epoch, lane after lane: (shard, index) [samples, 2]."""
    lanes = [order.lane_samples(epoch, lane, 0, rank, world) for lane in range(order.lanes)]
    return np.concatenate([np.stack((lane.shard, lane.index_in_shard), 1) for lane in lanes])


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 8), st.integers(1, 30), st.integers(0, 3), st.integers(1, 5))
def test_an_epoch_has_every_sample_once_over_all_ranks(counts, lanes, buffer, epoch, world):
    order = Order(counts, lanes, buffer, seed=1)
    every = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    read = np.concatenate([epoch_of(order, epoch, rank, world) for rank in range(world)])
    assert np.array_equal(read[np.lexsort((read[:, 1], read[:, 0]))], every)


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 8), st.integers(1, 30), st.integers(0, 60))
def test_a_later_start_leaves_out_exactly_the_samples_before_it(counts, lanes, buffer, start):
    order = Order(counts, lanes, buffer, seed=1)
    for lane in range(order.lanes):
        whole, rest = (order.lane_samples(1, lane, at, 0, 1).line.tolist() for at in (0, start))
        before = len(range(order.samples + lane, min(start, 2 * order.samples), order.lanes))
        assert rest == whole[before:]


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 4), st.integers(1, 40))
def test_a_lane_never_buffers_more_than_its_share(counts, lanes, buffer):
    order = Order(counts, lanes, buffer, seed=0)
    for lane in range(order.lanes):
        line = order.lane_samples(0, lane, 0, 0, 1).line
        read_until = np.maximum.accumulate(line)
        later = np.arange(len(line)) >= np.arange(len(line))[:, None]
        assert ((line <= read_until[:, None]) & later).sum(1).max() <= order.buffer


def test_the_order_depends_on_seed_and_epoch_and_separates_neighbours():
    order, other = (Order([50] * 8, 4, 80, seed) for seed in (0, 1))
    assert not np.array_equal(epoch_of(order, 0), epoch_of(order, 1))
    assert not np.array_equal(epoch_of(order, 0), epoch_of(other, 0))
    line = order.lane_samples(0, 0, 0, 0, 1).line
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


def test_ranks_share_no_lane_if_their_number_divides_that_of_the_lanes():
    order = Order([10] * 8, 8, 16, seed=0)
    lanes = [
        {lane for lane in range(8) if order.lane_samples(0, lane, 0, rank, 4).line.size} for rank in range(4)
    ]
    assert all(len(own) == 2 for own in lanes)
    assert len(set.union(*lanes)) == 8


@pytest.mark.parametrize(("shards", "lanes"), [(1, 1), (7, 4), (8, 8), (550, 512), (10_000, MAX_LANES)])
def test_the_default_number_of_lanes_is_a_power_of_two(shards: int, lanes: int):
    assert default_lanes(shards) == lanes
