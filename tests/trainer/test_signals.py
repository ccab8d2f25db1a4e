"""Signals ask for a stop; several ranks agree on it at a step boundary."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from parallel.mesh import ParallelConfig, join_mesh
from parallel.spawn import run_processes
from trainer.signals import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored() -> Iterator[None]:
    """A shell starts background commands, perhaps these tests, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_sets_the_number_and_the_first_one_counts(number: signal.Signals):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest() as stop:
        assert stop.number is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == number
    assert before == [signal.getsignal(each) for each in SIGNALS]


_STUCK = """
import ctypes, os, signal, threading, time
from trainer.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.number == signal.SIGINT
    print("asked", flush=True)
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    end = time.monotonic() + 20
    while time.monotonic() < end:  # as in a collective: C code, in which no Python handler runs
        ctypes.CDLL(None).sleep(5)
"""


def test_a_second_ctrl_c_ends_the_process_at_once_even_in_the_midst_of_c_code():
    ended = subprocess.run([sys.executable, "-c", _STUCK], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "asked\n"
    assert "Ctrl-C again ends the run at once, without saving" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_process_started_with_ctrl_c_ignored_still_stops_for_other_signals(number: signal.Signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == number
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def _vote_until_all_stop() -> tuple[int, int | None]:
    """The step at which this rank stops, and the signal."""
    dist.init_process_group("gloo")
    mesh = join_mesh(ParallelConfig(offset=2))
    engine = TorchEngine(torch.nn.Linear(1, 1), OptimizerConfig(), torch.device("cpu"), mesh=mesh)
    with StopRequest() as stop:
        for step in range(100):
            if mesh.rank == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGUSR2)
                assert stop.number is None, "acted before the others knew"
            engine.backward(engine.net(torch.ones(1, 1)).sum())
            stop.count(engine.update(stop.votes(engine.device)).votes.tolist())
            if stop.number:
                break
    with StopRequest() as evaluating:
        assert not evaluating.agree()
        if mesh.rank == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert evaluating.agree()
        assert evaluating.number == signal.SIGTERM
    return step, stop.number


def test_ranks_stop_at_the_same_step_when_one_has_seen_a_signal_whatever_the_axis():
    """On a mesh of data 2 × offset 2: rank 1 votes with rank 3 of its data group, then rank 0 of its model
    group, so all know."""
    assert run_processes(_vote_until_all_stop, 4, seconds=60) == [(3, signal.SIGUSR2)] * 4
