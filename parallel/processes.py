"""The processes of a job: connecting them, and what all ranks must agree on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from parallel.errors import UserError

Result = TypeVar("Result")
_WRITE_TIMEOUT = timedelta(hours=6)  # for a rank that writes files; a lost one closes its connections at once
_LEAVE_SECONDS = 30  # that a process may take to end after a failure
_write_group: dist.ProcessGroup | None = None
_checkpoint_group: dist.ProcessGroup | None = None


def own_device() -> torch.device:
    """This process's device: the CUDA device numbered LOCAL_RANK or the only one it sees, else the CPU.

    Raises UserError if the launcher started more processes than there are devices.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count == 1:  # the launcher may show each process only its own
        return torch.device("cuda", 0)
    if number >= count:
        raise UserError(
            f"LOCAL_RANK={number}: only {count} CUDA devices are visible; start one process per device"
        )
    return torch.device("cuda", number)


def join_processes(device: torch.device, group_of_one: bool = False, timeout: float = 600) -> None:
    """Initialise torch.distributed from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    A single process forms no group unless `group_of_one` asks for it; DeepSpeed needs one. A CUDA device
    becomes the process's default. A collective that takes longer than `timeout` seconds has lost a rank.
    Raises UserError if the other processes cannot be reached.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before NCCL starts, which uses the default device
        os.environ["LOCAL_RANK"] = str(device.index)  # of which DeepSpeed makes the default device again
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized() or (world == 1 and not group_of_one):
        return
    # Both backends with CUDA, so that a rank that fails before it has a device can still report it.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if world == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot connect to the {world} processes at {where}: {reason}") from None
    global _write_group, _checkpoint_group
    groups = [dist.new_group(backend="gloo", timeout=_WRITE_TIMEOUT) for _ in range(2)]
    _write_group, _checkpoint_group = groups  # pyright: ignore[reportAssignmentType]


def leave_processes() -> None:
    """Shut down torch.distributed."""
    global _write_group, _checkpoint_group
    if dist.is_initialized():
        dist.destroy_process_group()
    _write_group = _checkpoint_group = None


def abandon_processes() -> None:
    """Leave torch.distributed after a failure, without waiting for a peer that may be dead.

    NCCL's kernels are aborted, for shutting down in order would wait for them; and should a library still
    wait, now or when the interpreter ends, the process is killed after a while.
    """
    if not dist.is_initialized() or world_size() == 1:
        leave_processes()
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LEAVE_SECONDS)
    with suppress(Exception):
        dist.distributed_c10d._abort_process_group()


def rank() -> int:
    """This process's rank; 0 for a single process."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes this job has."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def run_on_first_rank(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 and return its result on every rank.

    A UserError is raised on rank 0; the other ranks exit silently, so that the user reads it once.
    """
    if not dist.is_initialized():
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [action(), None]
        except UserError as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome, src=0)
    result, error = outcome
    if error is not None:
        raise error if rank() == 0 else SystemExit(2)
    return result


def checkpoint_group() -> dist.ProcessGroup | None:
    """All ranks over gloo, for nothing but checkpoints, which a thread beside the training may write."""
    return _checkpoint_group


def largest_on_host(value: int) -> int:
    """Collective: the largest value of all ranks, found over gloo, so that no device waits."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_write_group)
    return int(largest)


def gather_on_host(value: Result) -> list[Result]:
    """Collective: the value of each rank, by rank, sent over gloo, so that no device waits."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, _write_group)
    return values


def raise_if_any_failed(error: UserError | None) -> None:
    """Collective: end all ranks if any passes an error. Rank 0 raises it; the others exit silently.

    Waits up to _WRITE_TIMEOUT for ranks that still write a large file.
    """
    if not dist.is_initialized():
        if error is not None:
            raise error
        return
    failures = gather_on_host(str(error) if error else None)
    failed = [number for number, failure in enumerate(failures) if failure]
    if not failed:
        return
    if rank():
        raise SystemExit(2)  # rank 0 reports it
    differ = len(set(failures)) > 1
    raise UserError(f"rank {failed[0]}: {failures[failed[0]]}" if differ else failures[0]) from error
