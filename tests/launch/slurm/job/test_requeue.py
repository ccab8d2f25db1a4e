"""When a job that has ended is requeued."""

import json
import os
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from launch.slurm.job import requeue
from launch.slurm.runs.job_record import (
    JobRecord,
    log_event,
    read_events,
    read_record,
    start_token,
    write_record,
)
from tests.launch.slurm.recorded import write_log
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


def ends_in(seconds: float, **fields: str) -> dict[str, str]:
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
    return RUNNING_JOB | {"EndTime": end, "PreemptTime": "None"} | fields


@pytest.mark.parametrize(
    ("number", "fields", "reason"),
    [
        (12, ends_in(100), "time limit"),
        (10, ends_in(100), "time limit"),
        (12, ends_in(900), "stopped by SIGUSR2"),
        (12, ends_in(15, PreemptTime="2026-01-01T00:00:00"), "preempted"),
        (15, ends_in(900, PreemptTime="2026-01-01T00:00:00"), "preempted"),
        (15, ends_in(900), "stopped by SIGTERM"),
    ],
)
def test_a_signal_is_told_as_what_it_means(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: int, fields: dict, reason: str
):
    write_record(run, JobRecord("digest", {"max_requeues": 2, "signal_delay": 60}, ["7"]))
    monkeypatch.setattr(requeue, "job_fields", lambda job: fields)
    log_event(run, "stopped", signal=number)
    assert requeue.requeue_reason(run, 0) == reason


def test_sigterm_after_a_rank_was_killed_is_told_as_that(run: Path):
    write_log(run, "7", 0, "srun: error: node2: task 1: Killed\n")
    log_event(run, "stopped", signal=15)
    assert requeue.requeue_reason(run, 143) == "node2: rank 1: Killed"


def test_a_failed_job_leaves_its_cause_and_tells_the_webhook(
    run: Path, monkeypatch: pytest.MonkeyPatch, requeued: list
):
    received = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        write_record(run, JobRecord("digest", {"max_requeues": 0, "notify": ["a@b.org", url]}, ["7"]))
        write_log(run, "7", 0, "error: the loss is not finite\n")
        log_event(run, "refused", rank="0")
        assert requeue.requeue(run, 2) == 2
        assert read_events(run)[-1]["cause"] == "the loss is not finite"
        monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
        log_event(run, "start")
        log_event(run, "stopped", signal=15)
        requeue.requeue(run, 0)
        log_event(run, "finished")
        assert requeue.requeue(run, 0) == 0
        monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
        log_event(run, "start")
        log_event(run, "stopped", signal=15)
        monkeypatch.setattr(requeue, "job_fields", lambda job: {"JobState": "TIMEOUT"})
        requeue.requeue(run, 0)
        write_record(run, replace(read_record(run), cancelled=True))
        requeue.requeue(run, 0)
        server.shutdown()
    told = [message["what"].split(":")[0] for message in received]
    assert told == ["failed", "not requeued", "finished", "not requeued", "cancelled; to resume"]
    assert "max_requeues=0 reached" in received[1]["what"]
    assert "Slurm reports the job as TIMEOUT; to resume" in received[3]["what"]
    assert received[0]["text"] == f"{run.name}: failed: the loss is not finite"
    assert received[0]["job"] == "7"


def test_a_webhook_that_does_not_answer_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]):
    url = "http://127.0.0.1:9/services/secret"
    write_record(run, JobRecord("digest", {"max_requeues": 0, "notify": [url]}, ["7"]))
    log_event(run, "finished")
    assert requeue.requeue(run, 0) == 0
    said = capsys.readouterr().out
    assert "warning: notify=http://127.0.0.1:9/…: " in said
    assert "secret" not in said


def test_a_webhook_that_speaks_no_http_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"what?\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        write_record(run, JobRecord("digest", {"max_requeues": 0, "notify": [url]}, ["7"]))
        log_event(run, "finished")
        assert requeue.requeue(run, 0) == 0
    assert "warning: notify=" in capsys.readouterr().out


def test_a_mistake_found_by_the_check_of_the_hosts_is_no_lost_node(
    run: Path, requeued: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(requeue, "unresponsive", lambda nodes: pytest.fail("must not wait for a lost node"))
    assert requeue.requeue(run, 2) == 2
    assert not requeued
    assert read_events(run)[-1]["event"] == "failed"
