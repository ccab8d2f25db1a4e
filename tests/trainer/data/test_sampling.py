"""Random numbers and orders depend on seed, stream and counter only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampling import (
    ROUNDS,
    Stream,
    permutation,
    permutation_at,
    random_bits,
    random_integers,
)

seeds = st.integers(0, 2**63 - 1)


def text_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation_at(seed, Stream.TEXT_ORDER + ROUNDS * epoch, count, np.arange(count))


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(0, 1000), st.integers(1, 300))
def test_a_permutation_has_every_sample_once(seed: int, stream: int, count: int):
    assert np.array_equal(np.sort(permutation(seed, stream, count)), np.arange(count))


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_number_does_not_depend_on_other_counters(seed: int, stream: int, counters: list[int]):
    at_once = random_bits(seed, stream, np.array(counters))
    one_by_one = [random_bits(seed, stream, np.array([c]))[0] for c in counters]
    assert at_once.tolist() == one_by_one


def test_numbers_and_orders_are_those_of_earlier_versions():
    """Changing them would change every resumed run."""
    assert random_integers(7, 1, np.arange(6), 57).tolist() == [35, 42, 15, 1, 48, 24]
    assert permutation(7, Stream.DIGIT_ORDER + 2, 6).tolist() == [3, 4, 0, 1, 2, 5]
    assert text_order(7, 2, 6).tolist() == [4, 5, 3, 2, 0, 1]


def test_streams_keep_their_numbers():
    """A changed or shared value would change or correlate the data of every run."""
    assert [int(value) for value in Stream] == [0, 1, 2, 3, 8, 16, 2**32, 2**33, 2**40]


def test_integers_are_uniform_and_streams_and_seeds_independent():
    counters = np.arange(57_000)
    drawn = {key: random_integers(*key, counters, 57) for key in [(0, 0), (0, 1), (1, 0)]}
    for values in drawn.values():
        counts = np.bincount(values, minlength=57)
        chi_square = float(((counts - 1000) ** 2 / 1000).sum())
        assert 25 < chi_square < 105  # 56 degrees of freedom: mean 56, standard deviation 10.6
    for one, other in [((0, 0), (0, 1)), ((0, 0), (1, 0))]:
        assert abs(np.corrcoef(drawn[one], drawn[other])[0, 1]) < 0.02


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(0, 10_000), st.integers(1, 3_000))
def test_a_permutation_without_an_array_has_every_sample_once(seed: int, epoch: int, count: int):
    assert np.array_equal(np.sort(text_order(seed, epoch, count)), np.arange(count))


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(1, 2**60), st.data())
def test_a_place_of_a_permutation_does_not_depend_on_other_places(seed: int, count: int, data: st.DataObject):
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8)))
    at_once = permutation_at(seed, Stream.TEXT_ORDER, count, places)
    assert ((at_once >= 0) & (at_once < count)).all()
    assert len(set(at_once.tolist())) == len(set(places.tolist()))
    for place, sample in zip(places, at_once, strict=True):
        assert permutation_at(seed, Stream.TEXT_ORDER, count, np.array([place]))[0] == sample


def test_orders_of_epochs_and_seeds_are_uncorrelated():
    orders = [text_order(seed, epoch, 5_000) for seed in range(3) for epoch in range(3)]
    orders.append(np.arange(5_000))
    correlation = np.corrcoef(orders) - np.eye(len(orders))
    assert np.abs(correlation).max() < 0.07  # five standard deviations
    for number, one in enumerate(orders):
        assert all((one == other).sum() < 10 for other in orders[:number])  # one is expected


@pytest.mark.parametrize("shift", [1, 2])
def test_neighbours_are_not_neighbours_in_the_order(shift: int):
    order = text_order(0, 0, 10_000)
    assert abs(np.corrcoef(order[shift:], order[:-shift])[0, 1]) < 0.05
    assert (np.abs(order[shift:] - order[:-shift]) == 1).sum() < 15  # two are expected
