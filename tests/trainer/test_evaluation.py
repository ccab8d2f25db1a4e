"""Evaluating the checkpoints of a run from another process."""

import json
from collections.abc import Callable
from pathlib import Path

from trainer.evaluation import evaluate_new_checkpoints


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
