"""The states of runs: Slurm's, and their own where Slurm has forgotten."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm.runs.states import SlurmView, alive_runs
from tests.launch.slurm.recorded import RecordedSlurm, event, make_run, write_log

START = event("start", "7", -100, nodes="node3")
USED_UP = event("exhausted", "7", -1)


@pytest.mark.parametrize(
    ("events", "accounted", "state", "why"),
    [
        ([START, event("finished", "7", -1)], "", "COMPLETED", ""),
        ([START, event("failed", "7", -1, cause="no CUDA")], "", "FAILED", "no CUDA"),
        (
            [START, event("stopped", "7", -2), event("exhausted", "7", -1)],
            "",
            "FAILED",
            "max_requeues=2 used up",
        ),
        ([START], "", "ENDED", "ended without a word on node3"),
        ([], "", "ENDED", "ended before training started"),
        ([START], "7|OUT_OF_MEMORY\n7.batch|FAILED\n", "OUT_OF_MEMORY", ""),
        ([START, event("finished", "6", -1)], "", "ENDED", "ended without a word on node3"),
    ],
)
def test_a_forgotten_run_is_what_its_own_events_say_then_the_database(
    recorded: RecordedSlurm, tmp_path: Path, events: list, accounted: str, state: str, why: str
):
    run = make_run(tmp_path / "run", "7", events=events)
    recorded.says("sacct", accounted)
    found = SlurmView().look([run])[run]
    assert (found.state, found.why) == (state, why)


def test_a_cause_does_not_repeat_the_runs_directory(recorded: RecordedSlurm, tmp_path: Path):
    run = tmp_path / "run"
    make_run(run, "7", events=[START, event("failed", "7", -1, cause=f"{run}: loss is not finite")])
    assert SlurmView().look([run])[run].why == "loss is not finite"


def test_an_end_is_asked_for_once(recorded: RecordedSlurm, tmp_path: Path):
    run, view = make_run(tmp_path / "run", "7", events=[START]), SlurmView()
    recorded.says("sacct", "7|TIMEOUT\n")
    assert [view.look([run])[run].state for _ in range(3)] == ["TIMEOUT"] * 3
    assert [call.split()[0] for call in recorded.calls()] == ["squeue", "sacct", "squeue", "squeue"]


def test_a_failed_run_without_an_event_says_what_its_log_says(recorded: RecordedSlurm, tmp_path: Path):
    run = make_run(tmp_path / "run", "7")
    write_log(run, "7", 0, "error: a setup command ended the job with exit code 3: exit 3\n")
    recorded.says("squeue", "7|FAILED|node1|0:00|NonZeroExitCode\n")
    found = SlurmView().look([run])[run]
    assert found.why == "a setup command ended the job with exit code 3: exit 3"


def test_alive_runs_have_a_job_of_training_or_evaluation_or_a_damaged_record(
    recorded: RecordedSlurm, tmp_path: Path
):
    runs = {name: make_run(tmp_path / name, job) for name, job in (("a", "7"), ("b", "8"), ("c", "9"))}
    make_run(tmp_path / "d", "10", evaluation_jobs=["11"])
    (tmp_path / "c" / "slurm.json").write_text("")
    (tmp_path / "local").mkdir()
    recorded.says("squeue", "7|PENDING||1:00|Priority\n8|COMPLETED|n|0:00|None\n11|RUNNING|n|1:00|None\n")
    alive = alive_runs([*runs.values(), tmp_path / "d", tmp_path / "local"])
    assert alive == {tmp_path / "a": "7", tmp_path / "c": "?", tmp_path / "d": "11"}


def test_train_does_not_take_over_a_run_whose_job_lives(
    recorded: RecordedSlurm, tmp_path: Path, translution: Callable
):
    run = make_run(tmp_path / "run", "7", events=[START])
    recorded.says("squeue", "7|RUNNING|node3|1:00|None\n")
    outcome = translution("train", "--resume", run)
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"error: {run}: its job 7 is alive; cancel it first (translution cancel {run})"
    )
    recorded.says("squeue", "slurm_load_jobs error: Unable to contact slurm controller", code=1)
    outcome = translution("train", "--resume", run)
    assert f"{run}: its job 7 may still be alive, and Slurm does not say" in outcome.err
    recorded.says("squeue", "7|CANCELLED|node3|0:00|None\n")
    assert "not a run directory: it has no config.yaml" in translution("train", "--resume", run).err
