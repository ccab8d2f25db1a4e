"""When a job that has ended is to start again."""

import os
import time
from pathlib import Path

import pytest

from launch.slurm.job import requeue
from launch.slurm.runs.job_record import SlurmFacts, note, read_notes, write_facts

HERE = {"JobState": "RUNNING", "NodeList": "a[1-2]"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(requeue, "job_facts", lambda job: HERE)
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: [])
    write_facts(tmp_path, SlurmFacts("digest", {"max_requeues": 2}, ["7"]))
    note(tmp_path, "start")
    return tmp_path


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(requeue, "slurm", lambda *words: calls.append(words))
    return calls


def save(run: Path, seconds_from_now: float) -> None:
    (run / "checkpoints").mkdir()
    path = run / "checkpoints" / "step-00000003.pt"
    path.touch()
    when = time.time() + seconds_from_now
    os.utime(path, (when, when))


def test_a_run_stopped_by_a_signal_starts_again(run: Path, requeued: list):
    note(run, "stopped", signal=12)
    assert requeue.requeue(run, 0) != 0, "a job that ends before its run must not look complete"
    assert requeued == [("scontrol", "requeue", "7")]
    assert read_notes(run)[-1]["event"] == "requeued"


def test_a_finished_run_does_not_even_if_a_signal_came_last(run: Path, requeued: list):
    note(run, "finished")
    assert requeue.requeue(run, 140) == 0
    assert not requeued


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "PENDING", "COMPLETING"])
def test_a_job_that_slurm_has_ended_or_requeued_itself_is_left_to_it(
    run: Path, requeued: list, monkeypatch: pytest.MonkeyPatch, state: str
):
    note(run, "stopped", signal=15)
    monkeypatch.setattr(requeue, "job_facts", lambda job: {"JobState": state})
    requeue.requeue(run, 0)
    assert not requeued


def test_a_cancelled_run_is_left_alone(run: Path):
    write_facts(run, SlurmFacts("digest", {"max_requeues": 2}, ["7"], cancelled=True))
    note(run, "stopped", signal=15)
    assert requeue.why_again(run, 0) is None


def test_a_users_mistake_is_left_alone(run: Path):
    note(run, "refused", rank="0")
    save(run, 10)
    assert requeue.why_again(run, 2) is None


def test_a_crash_after_a_save_is_tried_again_and_one_without_progress_is_not(run: Path):
    assert requeue.why_again(run, 1, wait=0) is None
    save(run, -10)
    assert requeue.why_again(run, 1, wait=0) is None, "that checkpoint is an earlier start's"
    os.utime(run / "checkpoints" / "step-00000003.pt")
    assert requeue.why_again(run, 1, wait=0) == "ended with code 1 after it had saved"


def test_the_loss_of_a_node_is_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch):
    answers = iter([[], ["a2"]])
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: next(answers))
    assert requeue.why_again(run, 1, wait=5) == "lost a2"


def test_after_a_lost_rank_slurm_is_given_the_time_it_takes_to_give_up_a_node(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the loss is not taken for a user's mistake."""
    waited, clock = [], iter(range(0, 10_000, 40))
    monkeypatch.setattr(requeue.time, "sleep", waited.append)
    monkeypatch.setattr(requeue.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(requeue, "node_timeout", lambda: 300.0)
    assert requeue.why_again(run, 1) is None
    without, waited[:] = len(waited), []
    note(run, "lost", rank="3")
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: ["a2"] if len(waited) == 7 else [])
    assert requeue.why_again(run, 1) == "lost a2"
    assert without < 2


def test_a_warning_that_comes_before_the_start_is_no_crash(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert requeue.why_again(run, 140, wait=0) is None, "it had begun"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeue.why_again(run, 140) == "warned before it had begun"
    assert requeue.why_again(run, 1, wait=0) is None


def test_what_an_earlier_start_noted_does_not_count(run: Path, monkeypatch: pytest.MonkeyPatch):
    note(run, "stopped", signal=12)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    note(run, "start")
    assert requeue.why_again(run, 1, wait=0) is None


def test_the_requeues_are_counted(run: Path, requeued: list, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    note(run, "stopped", signal=12)
    requeue.requeue(run, 0)
    assert not requeued
    assert f"max_requeues=2 are used up; translution resume {run}" in capsys.readouterr().out
