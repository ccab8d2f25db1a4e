"""`translution bench parallel` at a small size: what is held and sent; times are not tested."""

import json

import pytest

from launch.bench.parallel import Size, bench_parallel, show

# Half a bank is more than ZeRO-3 updates at once, so that each has a norm of its own.
SIZE = Size(side=6, width=144, heads=3, batch=4)


@pytest.fixture(scope="module")
def result():
    return bench_parallel(1, SIZE, seconds=100)


def test_each_rank_holds_half_the_bank_and_sends_bytes_that_do_not_depend_on_its_size(result):
    whole, half = result["operator"]["bank_bytes"]
    one_class = 4 * 3 * SIZE.width**2 * 4
    assert abs(half - whole / 2) <= one_class / 2
    short, long = result["doubled"]
    assert long["bank_bytes"] > 1.9 * short["bank_bytes"]
    assert long["sent"] == short["sent"] == result["operator"]["sent"]


def test_bytes_sent_equal_the_formula(result):
    """N·B·H maxima, N·B·(C + H) partial sums, N·B·C gradients; each all-reduce of two sends its size."""
    tokens, width, heads = SIZE.side**2 * SIZE.batch, SIZE.width, SIZE.heads
    assert result["operator"]["sent"]["offset"] == 4 * tokens * (heads + (width + heads) + width)


def test_a_step_sends_the_bytes_that_the_planner_predicts(result):
    offset, zero = result["step"]
    assert offset["sent"] == offset["planned"]
    assert zero["sent"] == zero["planned"]
    assert zero["sent"]["data"] > 3 * zero["bank_bytes"]


def test_the_same_result_is_shown_as_table_and_json(result, capsys):
    show(result, as_json=False)
    table = capsys.readouterr().out
    assert "operator, offset 2, 6×12, B=2" in table
    assert "plain ZeRO-3" in table
    show(result, as_json=True)
    assert json.loads(capsys.readouterr().out)["operator"]["gain"] == result["operator"]["gain"]
