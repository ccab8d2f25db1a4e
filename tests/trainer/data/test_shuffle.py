"""The shuffle that keeps no array is a permutation, differs by epoch and seed, and looks random."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.shuffle import shuffled


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000), st.integers(1, 3_000))
def test_every_sample_comes_once_an_epoch(seed: int, epoch: int, count: int):
    order = shuffled(seed, epoch, count, np.arange(count))
    assert np.array_equal(np.sort(order), np.arange(count))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63 - 1), st.integers(1, 2**60), st.data())
def test_a_place_alone_gives_the_same_as_among_others(seed: int, count: int, data: st.DataObject):
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    together = shuffled(seed, 1, count, places)
    assert ((together >= 0) & (together < count)).all()
    assert len(set(together.tolist())) == len(set(places.tolist()))
    for place, sample in zip(places, together, strict=True):
        assert shuffled(seed, 1, count, np.array([place]))[0] == sample


def test_orders_of_epochs_and_seeds_have_nothing_in_common():
    orders = [shuffled(seed, epoch, 5_000, np.arange(5_000)) for seed in range(3) for epoch in range(3)]
    orders.append(np.arange(5_000))
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.07  # five standard deviations
            assert (one == other).sum() < 10  # one is expected


def test_neighbours_are_parted():
    order = shuffled(0, 0, 10_000, np.arange(10_000))
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).sum() < 15  # two are expected
