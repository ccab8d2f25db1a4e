"""Signals ask for a stop; several ranks agree on it at a step boundary."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trainer.signals import StopRequest


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored() -> Iterator[None]:
    """A shell starts background commands, perhaps these tests, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_only_sets_the_number_and_the_first_one_counts(number: signal.Signals):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
    with StopRequest() as stop:
        assert stop.agree() is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == number
        assert stop.agree() == number
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]


def test_a_second_ctrl_c_acts_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_process_started_with_ctrl_c_ignored_still_stops_for_other_signals(number: signal.Signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == number
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


_RANK = """
import os, signal, sys, time
from torch import distributed
from trainer.signals import StopRequest
rank = int(sys.argv[1])
distributed.init_process_group("gloo", f"file://{sys.argv[2]}", rank=rank, world_size=2)
with StopRequest() as stop:
    for step in range(100):
        if rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.number is None, "acted before the others knew"
        if stop.agree():
            break
print(step, stop.number)
"""


def test_ranks_stop_at_the_same_step_when_one_has_seen_a_signal(tmp_path):
    commands = [[sys.executable, "-c", _RANK, str(rank), str(tmp_path / "rendezvous")] for rank in (0, 1)]
    ranks = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in commands]
    assert [rank.communicate(timeout=60)[0].strip() for rank in ranks] == ["3 12", "3 12"]
