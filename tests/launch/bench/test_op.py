"""`translution bench op`: its formulas, its memory measurement and its output."""

import json

import pytest
import torch

from launch.bench import op as bench_op
from launch.bench.op import SHAPES, Shape
from launch.bench.peak_memory import peak_memory
from models.offsets import OffsetGrid

NUMBERS = torch.zeros(250_000)  # 1 MB


def test_peak_memory_counts_what_is_allocated_at_the_same_time():
    def action():
        first = NUMBERS.clone()
        second = NUMBERS.clone()  # 2 MB live
        del first
        third = NUMBERS.clone()  # again 2
        return second, third

    assert peak_memory(action, torch.device("cpu")) == 2_000_000


def test_peak_memory_sees_temporaries_inside_operators():
    mean_square = lambda: torch.nn.functional.mse_loss(NUMBERS, NUMBERS)  # noqa: E731
    assert peak_memory(mean_square, torch.device("cpu")) >= 1_000_000


@pytest.mark.parametrize(
    ("name", "gflop"), [("7x7", 16.99), ("14x14", 67.98), ("4x4", 1.81), ("causal", 22.79), ("narrow", 2.12)]
)
def test_useful_flops_are_three_products_per_pair(name, gflop):
    assert SHAPES[name].flops / 1e9 == pytest.approx(gflop, abs=0.005)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench_op, "SIDE", 64)
    monkeypatch.setitem(SHAPES, "4x4", Shape(OffsetGrid((2, 2)), 2, 8, 2, (0.5, 0.5), memory=12))


def test_json_has_a_row_for_each_policy_and_nothing_else_is_printed(tiny, translution):
    outcome = translution("bench", "op", "--shape", "4x4", "--repeat", "2", "--json")
    assert outcome.code == 0
    result = json.loads(outcome.out)
    assert [row["policy"] for row in result["rows"]] == ["recompute", "keep"]
    for row in result["rows"]:
        assert 0 < row["forward_ms"] < row["both_ms"]
        low, high = row["fraction_range"]
        assert low <= row["fraction"] <= high
        assert row["useful_gflop_both"] == 3 * row["useful_gflop_forward"]
        assert row["bank_gradient_bytes"] == 3 * 9 * 8 * 8 * 4
        assert row["peak_bytes"] == pytest.approx(row["peak_in_x"] * row["x_bytes"])


def test_the_table_shows_targets_next_to_measurements(tiny, translution):
    outcome = translution("bench", "op", "--shape", "4x4", "--repeat", "1")
    assert outcome.code == 0
    assert "2×2, B=2, C=8, H=2, recompute" in outcome.out
    assert "≥ 0.50" in outcome.out
    assert "≤ 12" in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--shape", "5x5"], "--shape 5x5: one of 7x7, 14x14"), (["--device", "cuda"], "no CUDA device")],
)
def test_what_cannot_be_measured_is_one_line(options, message, translution):
    if torch.cuda.is_available() and "cuda" in options:
        pytest.skip("there is a CUDA device")
    outcome = translution("bench", "op", *options)
    assert outcome.code == 2
    assert message in outcome.err
