"""What `translution bench mixers` reports, at small sizes."""

import json

import pytest

from launch.bench import mixers
from launch.bench.mixers import ROWS, Row, bench_mixers, layer_of
from models import TokenGrid


@pytest.fixture
def small(monkeypatch):
    grid, sequence = TokenGrid((3, 3)), TokenGrid((9,), causal=True)
    places = {"IMAGE": grid, "TEXT": sequence, "LONG_IMAGE": TokenGrid((4, 4)), "LONG_TEXT": sequence}
    for name, tokens in places.items():
        monkeypatch.setattr(mixers, name, tokens)


def test_layers_are_timed_beside_attention_on_their_own_tokens(small):
    rows = bench_mixers(["gpsa", "shaw, causal", "structure, shifts"], 1)["rows"]
    assert [(row["shape"].split(",")[0], row["name"]) for row in rows] == [
        ("14×14", "attention"),
        ("14×14", "gpsa"),
        ("14×14", "structure, shifts"),
        ("196 causal", "attention"),
        ("196 causal", "shaw, causal"),
        ("64×64", "attention"),
        ("64×64", "structure, shifts"),
    ]
    for row in rows:
        assert row["over_attention"] == 1 or row["name"] != "attention"
        assert row["peak_bytes"] > 0


def test_layers_are_timed_at_any_number_of_tokens():
    rows = bench_mixers(["tssa", "bixt", "rwkv, causal"], 1, [12, 7])["rows"]
    assert [(row["shape"], row["name"]) for row in rows] == [
        (f"{tokens} {what}", name)
        for tokens in (12, 7)
        for what, names in (
            ("tokens", ("attention", "tssa", "bixt")),
            ("causal", ("attention", "rwkv, causal")),
        )
        for name in names
    ]


def test_the_command_prints_a_table_or_json(small, translution):
    done = translution("bench", "mixers", "--mixer", "swin", "--repeat", 1)
    assert done.code == 0, done.err
    assert "× attention" in done.out
    assert "14×14, B=8, swin" in done.out
    done = translution("bench", "mixers", "--mixer", "swin", "--repeat", 1, "--json")
    assert [row["name"] for row in json.loads(done.out)["rows"]] == ["attention", "swin"]


def test_an_unknown_row_is_refused(translution):
    done = translution("bench", "mixers", "--mixer", "swine")
    assert done.code == 2
    assert "--mixer swine: one of rope, " in done.err


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_layer_that_ships(name: str):
    row: Row = ROWS[name]
    assert layer_of(row, mixers.TEXT if row.causal else mixers.IMAGE).dim == mixers.WIDTH
