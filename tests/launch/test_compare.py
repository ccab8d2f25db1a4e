"""`translution compare`: nets in processes of their own, one table, nothing trained twice."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.tiny import TINY

NETS = {"full": {}, "plain, small": {"model.mixer": {"kind": "attention", "heads": 2, "head_dim": 4}}}


@pytest.fixture
def comparison_file(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    values = {"compare": {"match": "params"}, "study": {"nets": NETS, "seed": [3]}}
    path.write_text(yaml.safe_dump(TINY | {"train": TINY["train"] | {"steps": 2}} | values))
    return path


@pytest.mark.timeout(120)
def test_a_comparison_is_trained_once_and_written_in_every_form(
    comparison_file: Path, tmp_path: Path, translution: Callable
):
    root = tmp_path / "out"
    done = translution("compare", comparison_file, "--parallel", 2, "--out", root)
    assert done.code == 0, done.err
    results = json.loads((root / "results.json").read_text())
    assert [result["run"] for result in results] == ["full,seed=3", "plain_small,seed=3"]
    counts = [result["parameters"] for result in results]
    assert abs(counts[1] - counts[0]) <= 0.02 * counts[0]
    with (root / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["net"] for row in rows] == list(NETS)
    assert [float(row["parameters mean"]) for row in rows] == counts
    accuracy = results[0]["evaluation"]["static"]["accuracy"]
    assert float(rows[0]["Static→Static mean"]) == accuracy
    header = (root / "results.md").read_text().split("\n")[2]
    for column in ("parameters", "Static→Static", "FLOPs a sample", "ms a step", "peak memory"):
        assert column in header
    assert (root / "results.png").read_bytes()[:4] == b"\x89PNG"

    (root / "results.md").unlink()
    again = translution("compare", "--resume", root)
    assert again.code == 0, again.err
    assert "2 of 2 nets have finished before" in again.out
    assert (root / "results.md").exists()


def test_training_it_alone_is_refused_with_the_command(comparison_file: Path, translution: Callable):
    outcome = translution("train", comparison_file)
    assert outcome.code == 2
    assert "give it to `translution compare`" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "no config"),
        (["--budget", "300"], "--budget 300: one of steps=…"),
        (["--resume", "nowhere"], "nowhere: not a run directory"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], why: str, translution: Callable):
    outcome = translution("compare", *arguments)
    assert outcome.code == 2
    assert why in outcome.err
    assert outcome.err.count("\n") == 1
