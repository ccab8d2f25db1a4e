"""Starts a few processes on this machine that run one function together.

They are forked from a server process that has imported torch and DeepSpeed: in a new interpreter that
takes seconds, longer than many a run. The server has no process groups and has not touched CUDA.
"""

from __future__ import annotations

import os
import random
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from parallel.processes import leave_processes

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def run_processes(work: Callable[..., Any], world: int, *arguments: Any, seconds: float) -> list[Any]:
    """Run work(*arguments) in `world` new processes of one thread each, which can connect over gloo.

    Returns each rank's result. `work` and its arguments must be picklable. Raises RuntimeError with the
    first failing rank's traceback, or TimeoutError after `seconds`; no rank is left either way.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parallel.rank_imports"])
    queue = context.Queue()
    port = free_port()
    ranks = [
        context.Process(
            target=_run_rank,
            args=(work, arguments, os.environ | describe_rank(number, world, port), queue),
            daemon=True,
        )
        for number in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        return collect_results(queue, ranks, time.monotonic() + seconds)
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()


def collect_results(queue: Any, ranks: list[Any], deadline: float) -> list[Any]:
    """Wait for one (rank, result, traceback or None) from each of the processes; the results by rank.

    Raises RuntimeError for a rank that failed or died, TimeoutError after `deadline` (monotonic).
    """
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        if not queue.empty():
            number, result, failure = queue.get()
            if failure:
                raise RuntimeError(f"rank {number} of {len(ranks)} failed:\n{failure}")
            results[number] = result
            continue
        dead = [r for r, p in enumerate(ranks) if r not in results and p.exitcode not in (None, 0)]
        if dead:
            raise RuntimeError(f"rank {dead[0]} of {len(ranks)} died with code {ranks[dead[0]].exitcode}")
        if time.monotonic() > deadline:
            late = sorted(set(range(len(ranks))) - set(results))
            raise TimeoutError(f"ranks {late} of {len(ranks)} did not end in time")
        time.sleep(0.02)
    return [results[number] for number in range(len(ranks))]


def describe_rank(number: int, world: int, port: int) -> dict[str, str]:
    """Environment variables that tell a process its rank on this machine, as torchrun sets them."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _run_rank(
    work: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], queue: Any
) -> None:
    os.environ.clear()  # the server has its own from when it started
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        result, failure = work(*arguments), None
    except BaseException:
        result, failure = None, traceback.format_exc()
    queue.put((int(environment["RANK"]), result, failure))
    queue.close()
    queue.join_thread()
    leave_processes()


def free_port() -> int:
    """A TCP port of this machine that is not in use.

    It is below those that the system gives to outgoing connections, for one of these could take it before the
    processes have started.
    """
    draw = random.SystemRandom()  # whatever the seed of the run
    while True:
        port = draw.randrange(10_000, _first_port_of_connections())
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _first_port_of_connections() -> int:
    try:
        return max(11_000, int(_PORT_RANGE.read_text().split()[0]))
    except OSError:
        return 32_768
