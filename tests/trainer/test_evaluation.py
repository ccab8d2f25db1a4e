"""Evaluating the checkpoints of a run from another process."""

import json
from collections.abc import Callable
from pathlib import Path

from trainer.evaluation import evaluate_new_checkpoints
from trainer.run_directory.awaited import await_checkpoints, await_no_more, is_awaited
from trainer.run_directory.checkpoints import checkpoint_step, checkpoints, delete_old


def test_every_new_checkpoint_is_evaluated_once_as_the_run_does(
    config_file: Path, tmp_path: Path, translution: Callable
):
    run = tmp_path / "run"
    assert translution("train", config_file, f"run_dir={run}").code == 0
    assert evaluate_new_checkpoints(run, 6) == [6]
    assert evaluate_new_checkpoints(run, 3) == [3]
    assert evaluate_new_checkpoints(run, 3) == []
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [6, 3]
    assert records[0]["evaluation"] == json.loads((run / "result.json").read_text())["evaluation"]


def test_a_checkpoint_that_an_evaluation_waits_for_is_kept_until_then(
    config_file: Path, tmp_path: Path, translution: Callable
):
    run = tmp_path / "run"
    run.mkdir()
    await_checkpoints(run, 2)
    every = ("train.steps=7", "train.checkpoint_every=1", "train.keep_checkpoints=1")
    assert translution("train", config_file, f"run_dir={run}", *every).code == 0
    kept = [checkpoint_step(path) for path in checkpoints(run / "checkpoints")]
    assert kept == [2, 4, 6, 7]
    assert evaluate_new_checkpoints(run, 2) == [2, 4, 6]
    delete_old(run / "checkpoints", 1)
    assert [checkpoint_step(path) for path in checkpoints(run / "checkpoints")] == [7]


def test_an_evaluation_that_is_still_being_written_is_not_read(tmp_path: Path):
    (tmp_path / "evaluations.jsonl").write_text('{"step": 2}\n{"st')
    await_checkpoints(tmp_path, 2)
    assert [is_awaited(tmp_path, step) for step in (2, 3, 4)] == [False, False, True]
    await_no_more(tmp_path)
    assert not is_awaited(tmp_path, 4)
