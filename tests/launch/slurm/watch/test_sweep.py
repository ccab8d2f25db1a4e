"""The table of a sweep."""

import json
from collections.abc import Callable
from pathlib import Path

from launch.slurm.watch.sweep import show_if_complete
from tests.launch.slurm.recorded import RecordedSlurm, make_run


def finish(run: Path, accuracy: float, loss: float) -> None:
    evaluation = {"static": {"accuracy": accuracy, "loss": loss}}
    (run / "result.json").write_text(json.dumps({"step": 9, "evaluation": evaluation}))


def test_the_best_of_each_metric_is_marked_and_the_last_run_to_finish_writes_the_table(
    recorded: RecordedSlurm, tmp_path: Path, translution: Callable, capsys
):
    root, sweep = tmp_path / "runs", tmp_path / "runs" / "lr-sweep-1"
    runs = [
        make_run(root / f"lr-lr={n}-aaaa", f"60_{n}", submitted=n, sweep=str(sweep), label=f"lr={n}")
        for n in range(3)
    ]
    sweep.mkdir()
    finish(runs[0], 90.0, 0.3)
    finish(runs[1], 95.5, 0.4)
    show_if_complete(sweep, root)
    assert not (sweep / "results.md").exists()
    out = translution("sweep", "lr", "--runs", root).out
    assert "1 of 3 runs have not finished" in out
    finish(runs[2], 80.0, 0.25)
    show_if_complete(sweep, root)
    text = (sweep / "results.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in text.splitlines() if "lr=" in line}
    assert {row: [cell.strip() for cell in cells] for row, cells in rows.items()} == {
        "lr=0": ["90", "0.3"],
        "lr=1": ["95.5 *", "0.4"],
        "lr=2": ["80", "0.25 *"],
    }


def test_a_sweep_without_a_result_is_an_error(recorded: RecordedSlurm, tmp_path: Path, translution: Callable):
    run = make_run(tmp_path / "runs" / "a-1", "7")
    assert "none of these 1 runs has finished" in translution("sweep", "a", "--runs", run.parent).err
