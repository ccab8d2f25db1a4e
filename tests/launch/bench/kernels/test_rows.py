"""`translution bench kernels`: what it counts, and that it says so."""

import json

import pytest

from launch.bench.kernels import rows as bench
from launch.bench.kernels.before import before
from launch.bench.kernels.rows import SHARED, SIZES, Size, count_row
from models.ops.cards import CARDS

FIELDS = {"shape", "mixer", "c", "batch", "kernels_forward", "kernels_backward", "bytes", "milliseconds"}
FIELDS |= {"floor_milliseconds", "fraction", "before", "launch_share", "extra_in_x", "peak_extra_bytes"}


@pytest.fixture
def two_sizes(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", [Size("7x7", 64, 4), Size("14x14+cls", 192, 32)])
    monkeypatch.setattr(bench, "SHARED", [])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_floor_is_nine_products_a_pair(size):
    """3 forward and 6 backward; projections and logits add little, a class token saves little."""
    mixer = size.mixer("full")
    pairs = mixer.grid.num_pairs
    useful = 9 * 2 * pairs * size.batch * size.c**2
    assert 3 * mixer.cost(bench.Load(size.batch)).forward == pytest.approx(useful, rel=0.03)


def test_every_layer_was_counted_before():
    for mixer, size in bench.layers():
        shape = size.shape if size.share == "none" else f"{size.shape} {size.share}"
        for card in CARDS:
            then = before(shape, mixer, size.c, size.batch, card)
            assert then is not None
            assert then.kernels_backward > then.kernels_forward > 250


@pytest.mark.parametrize("size", SHARED[:3], ids=str)
def test_shared_entries_take_few_launches_and_stand_beside_attention(size):
    row, _ = count_row(size, "full", "h100")
    assert row["kernel"] == "fused"
    assert row["kernels_forward"] + row["kernels_backward"] < 150
    assert row["fraction"] > 0.25
    assert row["times_attention"] > row["times_attention_flops"] > 1
    assert row["before"]["milliseconds"] > 2 * row["milliseconds"]


def test_a_row_is_consistent():
    row, _ = count_row(Size("14x14+cls", 192, 32), "full", "h100")
    assert row["fraction"] == pytest.approx(row["floor_milliseconds"] / row["milliseconds"])
    assert row["floor_milliseconds"] == pytest.approx(1e3 * row["flops_useful"] / 800e12)
    assert row["flops_useful"] < row["flops_done"] < 2 * row["flops_useful"]
    launches = row["kernels_forward"] + row["kernels_backward"]
    assert row["launch_share"] == pytest.approx(launches * 5e-3 / row["milliseconds"])
    assert row["milliseconds"] >= max(launches * 2e-3, row["flops_done"] / 800e9, row["bytes"] / 3e9)
    assert row["before"]["milliseconds"] > row["milliseconds"]


@pytest.mark.parametrize(
    ("mixer", "size"),
    [*(("full", size) for size in [*SIZES, SHARED[1], SHARED[4]]), ("alpha-8", Size("14x14+cls", 768, 128))],
    ids=str,
)
@pytest.mark.parametrize("card", ["a100", "h100"])
def test_peak_memory_is_some_copies_of_x_and_a_workspace(mixer, size, card):
    """∂banks are not counted; the workspace is at most 2 GiB."""
    row, _ = count_row(size, mixer, card)
    assert row["extra_in_x_above_workspace"] <= 6
    assert row["workspace_bytes"] <= 2 << 30


def test_a_faster_card_takes_less_time():
    size = Size("14x14+cls", 192, 32)
    times = {card: count_row(size, "full", card)[0]["milliseconds"] for card in ("h100", "h200", "b200")}
    assert times["b200"] < times["h200"] < times["h100"]


def test_alpha_stands_beside_attention_of_its_width():
    row, _ = count_row(Size("14x14+cls", 192, 32), "alpha-8", "h100")
    assert 2 < row["times_attention_flops"] < 4
    assert row["times_attention"] == pytest.approx(row["milliseconds"] / row["attention_milliseconds"])


def test_json_has_a_row_for_each_size_and_mixer(two_sizes, translution):
    outcome = translution("bench", "kernels", "--card", "a100", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["how"] == "counted, not measured"
    rows = result["rows"]
    assert [(row["mixer"], row["c"]) for row in rows] == [
        (m, c) for m in ("full", "alpha-8") for c in (64, 192)
    ]
    assert all(row.keys() >= FIELDS for row in rows)
    assert "this card has 8.0" in result["not_counted"]["full, grouped"]


def test_the_table_says_that_nothing_is_measured(two_sizes, translution):
    outcome = translution("bench", "kernels")
    assert outcome.code == 0, outcome.err
    assert "counted, not measured" in outcome.out.splitlines()[1]
    assert "full 14x14+cls, C=192, B=32" in outcome.out


def test_an_unknown_card_is_one_line(translution):
    outcome = translution("bench", "kernels", "--card", "v100")
    assert outcome.code == 2
    assert "--card v100: one of a100, h100, h200, b200 is needed" in outcome.err
