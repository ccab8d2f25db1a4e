"""run_processes: results by rank, failures with their traceback, a time limit, and fresh processes."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from parallel.spawn import free_port, run_processes


def describe_itself(name: str) -> tuple[str, str, str | None, int]:
    return os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ.get(name), torch.get_num_threads()


def fail_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("on purpose")


def die_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        os._exit(7)


def write_pid_and_sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def mark_this_process() -> bool:
    """Whether an earlier call ran in the same process; leaves a mark for the next."""
    marked = hasattr(sys, "translution_mark")
    sys.translution_mark = True
    return marked


def test_each_rank_returns_its_result_and_sees_the_environment_of_now(monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("TRANSLUTION_TEST", value)
        ranks = run_processes(describe_itself, 2, "TRANSLUTION_TEST", seconds=60)
        assert ranks == [("0", "2", value, 1), ("1", "2", value, 1)]
    monkeypatch.delenv("TRANSLUTION_TEST")
    assert run_processes(describe_itself, 1, "TRANSLUTION_TEST", seconds=60) == [("0", "1", None, 1)]


def test_every_call_starts_fresh_processes():
    assert run_processes(mark_this_process, 2, seconds=60) == [False, False]
    assert run_processes(mark_this_process, 2, seconds=60) == [False, False]


def test_a_rank_that_fails_is_reported_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 failed:.*ZeroDivisionError: on purpose"):
        run_processes(fail_on_rank_1, 2, seconds=60)


def test_a_rank_that_dies_is_reported_with_its_exit_code():
    with pytest.raises(RuntimeError, match="rank 1 of 2 died with code 7"):
        run_processes(die_on_rank_1, 2, seconds=60)


def test_ranks_that_take_too_long_are_killed(tmp_path):
    run_processes(mark_this_process, 1, seconds=60)  # starts the server, which takes seconds
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2 did not end in time"):
        run_processes(write_pid_and_sleep, 2, str(tmp_path), seconds=4)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_free_port_is_none_that_a_connection_may_take():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()
        with socket.socket() as client:
            client.connect(listener.getsockname())
            assert listener.getsockname()[1] < client.getsockname()[1], "the system chose the client's"
