"""Curves of runs."""

import pytest

from trainer.pictures.curves import smooth


def test_each_value_becomes_the_mean_of_a_tenth_of_the_curve_around_it():
    zigzag = [float(i % 2) for i in range(40)]  # two on either side
    assert smooth(zigzag)[10:12] == [pytest.approx(2 / 5), pytest.approx(3 / 5)]
    assert smooth(zigzag)[0] == pytest.approx(1 / 3)  # the first three
    assert smooth([3.0, 1.0]) == [3.0, 1.0]
