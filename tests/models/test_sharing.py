"""Share rules divide the distances into intervals, and bad ones are refused in one line."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import OffsetGrid, ViTConfig
from models.sharing import buckets, check_share
from trainer.config.errors import ConfigError
from trainer.config.run import load_config

LENGTHS = st.integers(1, 300)
FACTORS = st.decimals("1.05", 300, places=2).map(lambda factor: f"log({factor})")
RULES = st.one_of(st.sampled_from(["none", "log"]), FACTORS, st.integers(0, 40).map("clip({})".format))
BAD_CLIPS = ["clip(-1)", "clip(1.5)", "clip()", "clip(³)", "clip", "", "linear"]


@given(RULES, LENGTHS)
def test_buckets_are_intervals_in_order_of_distance_and_none_is_empty(rule: str, n: int):
    found = buckets(rule, n)
    assert len(found) == n  # one bucket for every distance
    assert found[0] == 0
    assert {b - a for a, b in itertools.pairwise(found)} <= {0, 1}


@given(FACTORS, LENGTHS)
def test_a_log_bucket_lies_between_two_powers_of_the_factor(rule: str, n: int):
    found, powers = buckets(rule, n), [Fraction(1)]
    while powers[-1] < n:
        powers.append(powers[-1] * Fraction(rule[4:-1]))
    starts = {math.ceil(power) for power in powers if power < n}  # where an interval begins
    assert [d for d in range(1, n) if found[d] != found[d - 1]] == sorted(starts & set(range(1, n)))


@given(RULES, st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_entries_of_a_grid_are_symmetric_and_without_gaps(rule: str, rows: int, columns: int, cls: bool):
    grid = OffsetGrid((rows, columns), class_token=cls, share=rule)
    deltas = list(itertools.product(range(1 - rows, rows), range(1 - columns, columns)))
    sides = [max(buckets(rule, n)) + 1 for n in (rows, columns)]
    for row, column in deltas:
        # The entry of −δ is the mirror image of δ's.
        last = grid.entry((rows - 1, columns - 1))
        assert grid.entry((row, column)) + grid.entry((-row, -column)) == last
    assert len({grid.entry(delta) for delta in deltas}) == (2 * sides[0] - 1) * (2 * sides[1] - 1)
    assert grid.table.unique().tolist() == list(range(grid.num_entries))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("log", [0, 1, 2, 2, 3, 3, 3, 3, 4, 4]),
        ("log(1.5)", [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]),
        ("log(4)", [0, 1, 1, 1, 2, 2, 2, 2, 2, 2]),
        ("clip(3)", [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]),
        ("clip(0)", [0] * 10),
    ],
)
def test_the_first_distances_of_every_rule(rule: str, expected: list[int]):
    assert list(buckets(rule, 10)) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 160, 8192])
def test_log_is_log_of_two_and_a_tiny_factor_shares_nothing(n: int):
    assert buckets("log", n) == buckets("log(2)", n) == buckets("log(2.000)", n)
    assert buckets("log(1.00000000000001)", n) == buckets("none", n)


def test_clip_of_zero_is_one_matrix_even_for_the_class_token():
    grid = OffsetGrid((3, 4), class_token=True, share="clip(0)")
    assert grid.num_entries == 1
    assert torch.equal(grid.table, torch.zeros(13, 13, dtype=torch.long))
    assert OffsetGrid((1, 1), class_token=True, share="clip(1)").num_entries == 4


@pytest.mark.parametrize(
    "rule",
    [
        "log(1)",
        "log(0)",
        "log(0.99)",
        "log()",
        "log(-2)",
        "log(x)",
        "log(2",
        "log(1e1)",
        "log(2)\n",
        *BAD_CLIPS,
    ],
)
def test_a_rule_that_does_not_exist_is_refused_with_what_would_be_right(rule: str, config_file):
    right = "none, log, log(FACTOR) with a factor above 1, or clip(RADIUS) is needed"
    with pytest.raises(ValueError, match="log"):
        check_share(rule)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (compared below)
        OffsetGrid((3, 3), share=rule)
    assert str(error.value) == f"share {rule!r}: {right}"
    if rule.strip() == rule and rule:
        with pytest.raises(ConfigError) as error:
            load_config(config_file, [f"model.mixer.share='{rule}'"])
        assert str(error.value) == f"model.mixer.share={rule}: {right}"


def test_the_config_takes_every_rule():
    for rule in ("none", "log", "log(1.5)", "log(4)", "clip(0)", "clip(12)"):
        mixer = {"kind": "translution", "share": rule}
        config = ViTConfig.model_validate({"mixer": mixer, "image_size": 64})
        assert config.mixer.model_dump()["share"] == rule
