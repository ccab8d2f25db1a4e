"""Random numbers by counter: nobody's share depends on what others drew."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.sampling import permutation, random_bits, random_integers

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(0, 1000), st.integers(1, 300))
def test_a_permutation_holds_every_sample_once(seed: int, stream: int, count: int):
    assert np.array_equal(np.sort(permutation(seed, stream, count)), np.arange(count))


@given(seeds, st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_numbers_depend_on_their_own_counter_alone(seed: int, stream: int, counters: list[int]):
    together = random_bits(seed, stream, np.array(counters))
    alone = [random_bits(seed, stream, np.array([c]))[0] for c in counters]
    assert together.tolist() == alone


def test_the_numbers_are_those_of_earlier_versions():
    """Changing them would change every run that is resumed."""
    assert random_integers(7, 1, np.arange(6), 57).tolist() == [35, 42, 15, 1, 48, 24]


def test_integers_are_uniform_and_streams_and_seeds_independent():
    counters = np.arange(57_000)
    drawn = {key: random_integers(*key, counters, 57) for key in [(0, 0), (0, 1), (1, 0)]}
    for values in drawn.values():
        counts = np.bincount(values, minlength=57)
        chi_square = float(((counts - 1000) ** 2 / 1000).sum())
        assert 25 < chi_square < 105  # 56 degrees of freedom: mean 56, deviation 10.6
    for one, other in [((0, 0), (0, 1)), ((0, 0), (1, 0))]:
        assert abs(np.corrcoef(drawn[one], drawn[other])[0, 1]) < 0.02
