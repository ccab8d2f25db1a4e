"""A run whose newest checkpoint is damaged goes on from the one before, without a person."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks import losses
from tests.saved import flip_byte, newest
from trainer.faults.fault_log import read_faults

WEIGHTS = "rank-0000.weight.safetensors"


@pytest.fixture
def run(config_file: Path, tmp_path: Path, translution: Callable) -> Path:
    """Six steps, checkpoints of steps 3 and 6."""
    done = translution("train", config_file, f"run_dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: flip_byte(path / WEIGHTS, -9), f"{WEIGHTS}: bytes from "),
        (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS}: is missing"),
        (lambda path: (path / "rank-0000.json").write_text("{}"), "rank-0000.json: is not what was written"),
    ],
    ids=["flipped", "missing", "manifest"],
)
def test_the_one_before_is_used(run: Path, translution: Callable, damage: Callable, why: str):
    before = losses(run)
    path = newest(run)
    damage(path)
    evaluated = translution("evaluate", run)
    assert evaluated.code == 0, evaluated.err
    assert f"{path}: damaged checkpoint ({why}" in evaluated.out
    resumed = translution("train", "--resume", run)
    assert resumed.code == 0, resumed.err
    assert f"{path}: damaged checkpoint ({why}" in resumed.out
    assert "; the one before it is used\ngoing on from step 3\n" in resumed.out
    assert losses(run) == before
    assert [fault["fault"] for fault in read_faults(run)] == ["damaged checkpoint"] * 2
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-00000003",
        "step-00000006",
    ]


def test_when_all_are_damaged_each_is_named_and_none_is_touched(run: Path, translution: Callable):
    for path in (run / "checkpoints").iterdir():
        shutil.copy(path / "rank-0000.json", path / WEIGHTS)
    for words in (("train", "--resume", run), ("evaluate", run)):
        refused = translution(*words)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert all(f"step-0000000{step}: damaged checkpoint" in refused.err for step in (3, 6))
    assert len(list((run / "checkpoints").glob("step-*/index.json"))) == 2


def test_a_checkpoint_says_what_the_run_was(run: Path):
    index = json.loads((newest(run) / "index.json").read_text())["checkpoint"]
    assert (index["step"], index["samples"]) == (6, 48)
    assert index["run"]["config"]["train"]["steps"] == 6
    assert index["run"]["versions"].keys() >= {"translution", "torch", "python"}
    assert index["mesh"] == {"data": 1, "offset": 1, "tensor": 1}
