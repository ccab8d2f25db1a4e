"""Processes: joining those that a launcher started, and starting a few on this machine."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from parallel.errors import UserError

TIMEOUT = timedelta(minutes=10)  # a collective that waits longer means a lost rank


def join_processes(device: torch.device) -> None:
    """Meets the processes of this job as torchrun, deepspeed and Slurm describe them (RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT); a process on its own meets nobody.

    Raises UserError when the others cannot be met.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot meet the {world} processes at {where}: {reason}") from None


def leave_processes() -> None:
    """Ends what join_processes began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def run_processes(work: Callable[..., Any], world: int, *arguments: Any, seconds: float) -> list[Any]:
    """work(*arguments) in `world` fresh processes of one thread each that can meet over gloo; returns
    what each rank returned.

    `work` and its arguments must be importable from a module. Raises RuntimeError with the first
    failing rank's traceback, or TimeoutError after `seconds`; no process is left either way.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    port = _free_port()
    ranks = [
        context.Process(target=_rank, args=(work, rank, world, port, arguments, queue), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        return _collect(queue, ranks, time.monotonic() + seconds)
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()


def _collect(queue: Any, ranks: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        if not queue.empty():
            rank, result, failure = queue.get()
            if failure:
                raise RuntimeError(f"rank {rank} of {len(ranks)} failed:\n{failure}")
            results[rank] = result
            continue
        dead = [r for r, p in enumerate(ranks) if r not in results and p.exitcode not in (None, 0)]
        if dead:
            raise RuntimeError(f"rank {dead[0]} of {len(ranks)} died with code {ranks[dead[0]].exitcode}")
        if time.monotonic() > deadline:
            late = sorted(set(range(len(ranks))) - set(results))
            raise TimeoutError(f"ranks {late} of {len(ranks)} did not end in time")
        time.sleep(0.02)
    return [results[rank] for rank in range(len(ranks))]


def _rank(
    work: Callable[..., Any], rank: int, world: int, port: int, arguments: tuple[Any, ...], queue: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        result, failure = work(*arguments), None
    except BaseException:
        result, failure = None, traceback.format_exc()
    queue.put((rank, result, failure))
    queue.close()
    queue.join_thread()
    leave_processes()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
