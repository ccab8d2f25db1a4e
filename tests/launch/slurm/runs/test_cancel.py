"""`translution cancel`."""

from collections.abc import Callable
from pathlib import Path

from launch.slurm.runs.job_record import read_record
from tests.launch.slurm.recorded import RecordedSlurm, make_run


def test_several_runs_are_cancelled_by_one_command_and_not_requeued(
    recorded: RecordedSlurm, tmp_path: Path, translution: Callable
):
    root = tmp_path / "runs"
    a, b = make_run(root / "a-1", "7", evaluation_jobs=["8"]), make_run(root / "b-1", "9")
    over = make_run(root / "c-1", "10")
    recorded.says("squeue", "7|RUNNING|n|1:00|None\n8|PENDING||1:00|Dependency\n9|PENDING||1:00|None\n")
    recorded.says("scancel", "")
    out = translution("cancel", "a", "9", "c-1", "--runs", root).out
    assert [call for call in recorded.calls() if call.startswith("scancel")] == ["scancel 7 8 9"]
    assert out.splitlines()[0] == f"cancelled job 7, 8; to resume: translution resume {a}"
    assert out.splitlines()[2] == "c-1: nothing to cancel"
    assert [read_record(run).cancelled for run in (a, b, over)] == [True, True, False]
    outcome = translution("cancel", "c", "--runs", root)
    assert outcome.err == f"error: {over}: nothing to cancel: its job 10 is ENDED\n"
