"""When a job that has ended is requeued."""

import os
import time
from pathlib import Path

import pytest

from launch.slurm.job import requeue
from launch.slurm.runs.job_record import JobRecord, log_event, read_events, start_token, write_record
from trainer.faults.fault_log import note_fault
from trainer.run_directory.ownership import START_TOKEN

RUNNING_JOB = {"JobState": "RUNNING", "NodeList": "a[1-2]"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(requeue, "job_fields", lambda job: RUNNING_JOB)
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: [])
    write_record(tmp_path, JobRecord("digest", {"max_requeues": 2}, ["7"]))
    log_event(tmp_path, "start")
    return tmp_path


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(requeue, "slurm", lambda *command: calls.append(command))
    return calls


def note(run: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """As a process of the job's present start does."""
    monkeypatch.setenv(START_TOKEN, start_token())
    note_fault(run, fault)


def save(run: Path, seconds_from_now: float) -> None:
    (run / "checkpoints").mkdir()
    path = run / "checkpoints" / "step-00000003.pt"
    path.touch()
    when = time.time() + seconds_from_now
    os.utime(path, (when, when))


def test_a_run_stopped_by_a_signal_is_requeued(run: Path, requeued: list):
    log_event(run, "stopped", signal=12)
    assert requeue.requeue(run, 0) != 0, "a job that ends before its run must not look complete"
    assert requeued == [("scontrol", "requeue", "7")]
    assert read_events(run)[-1]["event"] == "requeued"


def test_a_finished_run_is_not_requeued_even_if_a_signal_came_last(run: Path, requeued: list):
    log_event(run, "finished")
    assert requeue.requeue(run, 140) == 0
    assert not requeued


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "PENDING", "COMPLETING"])
def test_a_job_that_slurm_has_ended_or_requeued_is_not_requeued_again(
    run: Path, requeued: list, monkeypatch: pytest.MonkeyPatch, state: str
):
    log_event(run, "stopped", signal=15)
    monkeypatch.setattr(requeue, "job_fields", lambda job: {"JobState": state})
    requeue.requeue(run, 0)
    assert not requeued


def test_a_cancelled_run_is_not_requeued(run: Path):
    write_record(run, JobRecord("digest", {"max_requeues": 2}, ["7"], cancelled=True))
    log_event(run, "stopped", signal=15)
    assert requeue.requeue_reason(run, 0) is None


def test_a_users_mistake_is_not_requeued(run: Path):
    log_event(run, "refused", rank="0")
    save(run, 10)
    assert requeue.requeue_reason(run, 2) is None


def test_a_crash_is_requeued_only_after_saving_a_checkpoint(run: Path):
    assert requeue.requeue_reason(run, 1, wait=0) is None
    save(run, -10)
    assert requeue.requeue_reason(run, 1, wait=0) is None, "that checkpoint is from an earlier start"
    os.utime(run / "checkpoints" / "step-00000003.pt")
    assert requeue.requeue_reason(run, 1, wait=0) == "ended with code 1 after saving a checkpoint"


def test_a_node_loss_that_slurm_reports_late_is_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch):
    answers = iter([[], ["a2"]])
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: next(answers))
    assert requeue.requeue_reason(run, 1, wait=5) == "lost a2"


def test_after_a_lost_rank_slurm_has_its_node_timeout_to_report_the_loss(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    waited, clock = [], iter(range(0, 10_000, 40))
    monkeypatch.setattr(requeue.time, "sleep", waited.append)
    monkeypatch.setattr(requeue.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(requeue, "node_timeout", lambda: 300.0)
    assert requeue.requeue_reason(run, 1) is None
    without, waited[:] = len(waited), []
    note(run, monkeypatch, "lost rank")
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: ["a2"] if len(waited) == 7 else [])
    assert requeue.requeue_reason(run, 1) == "lost a2"
    assert without < 2


@pytest.mark.parametrize(
    ("code", "faults", "reason"),
    [
        (1, ["lost rank"], "lost a rank"),
        (137, [], "lost a rank"),  # every rank was killed: nobody could note it
        (134, [], "lost a rank"),  # NCCL aborted the survivors, which noted nothing
        (1, ["hang"], "hung"),
        (1, ["crash", "lost rank"], None),  # the rank was lost to an error of this program
        (1, ["lost rank", "out of memory"], None),
        (1, ["skipped"], None),
    ],
)
def test_a_lost_rank_or_a_hang_is_requeued_even_before_the_first_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, code: int, faults: list[str], reason: str | None
):
    for fault in faults:
        note(run, monkeypatch, fault)
    assert requeue.requeue_reason(run, code, wait=0) == reason


def test_faults_of_an_earlier_start_do_not_count(run: Path, monkeypatch: pytest.MonkeyPatch):
    note(run, monkeypatch, "hang")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    log_event(run, "start")
    assert requeue.requeue_reason(run, 1, wait=0) is None


def test_a_signal_before_training_started_is_no_crash(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert requeue.requeue_reason(run, 140, wait=0) is None, "training had started"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeue.requeue_reason(run, 140) == "stopped by a signal before training started"
    assert requeue.requeue_reason(run, 1, wait=0) is None


def test_events_of_an_earlier_start_do_not_count(run: Path, monkeypatch: pytest.MonkeyPatch):
    log_event(run, "stopped", signal=12)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    log_event(run, "start")
    assert requeue.requeue_reason(run, 1, wait=0) is None


def test_the_number_of_requeues_is_limited(
    run: Path, requeued: list, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    log_event(run, "stopped", signal=12)
    requeue.requeue(run, 0)
    assert not requeued
    assert f"max_requeues=2 reached; to resume: translution resume {run}" in capsys.readouterr().out
