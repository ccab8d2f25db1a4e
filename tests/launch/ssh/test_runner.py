"""Stopping DeepSpeed's runner: the ranks on all hosts are asked to save first."""

import os
import signal
import subprocess
import sys
import threading
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


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> threading.Timer:
    """Ctrl-C in a moment."""
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_at_ctrl_c_every_host_is_asked_and_the_exit_code_is_that_of_train(
    interrupt: threading.Timer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    process, asked = started(1), []

    def ssh(host: str, command: str, seconds: float) -> str:
        asked.append((host, command.split()[-2:]))
        if len(asked) == 2:
            process.send_signal(signal.SIGUSR1)
        return "2\n"

    monkeypatch.setattr(runner, "ssh", ssh)
    assert runner.wait(process, ["a", "b"], "token") == 130
    assert sorted(asked) == [(host, ["launch.ssh.stop_trainers", "token"]) for host in ("a", "b")]
    assert "the ranks finish their step and save" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("answer", ["0\n", None])
def test_where_a_host_has_no_rank_or_does_not_answer_all_are_ended(
    interrupt: threading.Timer, monkeypatch: pytest.MonkeyPatch, answer: str | None
):
    def ssh(host: str, command: str, seconds: float) -> str:
        if answer is None:
            raise UserError("b: did not answer")
        return answer

    monkeypatch.setattr(runner, "ssh", ssh)
    process = started(0)
    assert runner.wait(process, ["a", "b"], "token") == 130
    assert process.returncode == -signal.SIGTERM


def test_a_runner_that_ends_by_itself_keeps_its_exit_code(tmp_path: Path):
    process = started(3)
    process.send_signal(signal.SIGUSR1)
    assert runner.wait(process, ["a"], "token") == 3
