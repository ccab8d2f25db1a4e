"""Stopping DeepSpeed's runner: the ranks on all hosts are asked to save first."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.ssh import runner
from parallel.errors import UserError


def started(code: int) -> subprocess.Popen[bytes]:
    """A process that ends with this code at SIGUSR1, as when its ranks have ended; SIGTERM kills it."""
    program = (
        "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(int(sys.argv[1])))\n"
        "print('ready', flush=True); signal.pause(); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(code)], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process


def soon(number: int) -> threading.Timer:
    """This process gets a signal in a moment."""
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), number))
    timer.start()
    return timer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_at_a_signal_every_host_is_asked_and_the_exit_code_is_that_of_train(
    number: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    process, asked, before = started(1), [], signal.getsignal(number)

    def ssh(host: str, command: str, seconds: float) -> str:
        asked.append((host, command.split()[-3:]))
        if len(asked) == 2:
            process.send_signal(signal.SIGUSR1)
        return "2\n"

    monkeypatch.setattr(runner, "ssh", ssh)
    soon(number)
    assert runner.wait(process, ["a", "b"], "token") == 128 + number
    words = ["launch.ssh.stop_trainers", "token", str(int(number))]
    assert sorted(asked) == [(host, words) for host in ("a", "b")]
    assert "the ranks finish their step and save" in capfd.readouterr().out
    assert signal.getsignal(number) is before


def test_a_signal_that_was_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch):
    """As nohup does with SIGHUP."""
    monkeypatch.setattr(runner, "ssh", lambda *_: pytest.fail("must not be asked to stop"))
    process, before = started(3), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        soon(signal.SIGHUP)
        threading.Timer(0.5, lambda: process.send_signal(signal.SIGUSR1)).start()
        assert runner.wait(process, ["a"], "token") == 3
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_signal_does_not_end_ranks_that_save_but_another_ctrl_c_does(monkeypatch: pytest.MonkeyPatch):
    process = started(0)
    ended: list[int | None] = []

    def ssh(host: str, command: str, seconds: float) -> str:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        ended.append(process.poll())
        os.kill(os.getpid(), signal.SIGINT)
        process.wait(20)
        return "2\n"

    monkeypatch.setattr(runner, "ssh", ssh)
    soon(signal.SIGUSR1)
    assert runner.wait(process, ["a"], "token") == 128 + signal.SIGUSR1
    assert ended == [None]
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("answer", ["0\n", None])
def test_where_a_host_has_no_rank_or_does_not_answer_all_are_ended(
    monkeypatch: pytest.MonkeyPatch, answer: str | None
):
    def ssh(host: str, command: str, seconds: float) -> str:
        if answer is None:
            raise UserError("b: did not answer")
        return answer

    monkeypatch.setattr(runner, "ssh", ssh)
    process = started(0)
    soon(signal.SIGINT)
    assert runner.wait(process, ["a", "b"], "token") == 130
    assert process.returncode == -signal.SIGTERM


def test_a_runner_that_ends_by_itself_keeps_its_exit_code(tmp_path: Path):
    process = started(3)
    process.send_signal(signal.SIGUSR1)
    assert runner.wait(process, ["a"], "token") == 3
