"""The processes of a job: connecting them, and what all ranks must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from parallel.errors import UserError

Result = TypeVar("Result")
CODE_FOLDER = Path(__file__).resolve().parent.parent  # holds models/, parallel/, trainer/ and launch/
TIMEOUT = timedelta(minutes=10)  # a collective that waits longer means a lost rank
_PATIENCE = timedelta(hours=6)  # for a rank that writes; one that is lost breaks its connections at once
_patient: dist.ProcessGroup | None = None


def own_device() -> torch.device:
    """This process's device: of the CUDA devices that it is shown the one of its number on this machine.

    Raises UserError where the launcher started more processes than there are devices.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count == 1:  # perhaps each process is shown its own
        return torch.device("cuda", 0)
    if number >= count:
        raise UserError(
            f"LOCAL_RANK={number}: this machine shows {count} CUDA devices; start a process for each"
        )
    return torch.device("cuda", number)


def join_processes(device: torch.device, alone: bool = False) -> None:
    """Meets the processes of this job as torchrun, deepspeed and Slurm describe them (RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT).

    A process on its own meets nobody; with `alone` it forms a group of one, which DeepSpeed needs. A
    CUDA device becomes the process's default. Raises UserError when the others cannot be met.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before NCCL, which takes the default one
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized() or (world == 1 and not alone):
        return
    # With CUDA both, so that ranks that fail before they have a device can still say so.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if world == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot meet the {world} processes at {where}: {reason}") from None
    global _patient
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    _patient = group


def leave_processes() -> None:
    """Ends what join_processes began."""
    global _patient
    if dist.is_initialized():
        dist.destroy_process_group()
    _patient = None


def rank() -> int:
    """This process's number in its job; 0 on its own."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The processes of this job."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def lead(action: Callable[[], Result]) -> Result:
    """What `action` returns on the first rank, on every rank; only the first runs it.

    A UserError there ends the other ranks silently, so that a person reads it once.
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


def all_well(error: UserError | None) -> None:
    """Every rank says whether its part of a common work failed; all raise if any did.

    Those that are done wait for the others, whose part may be the writing of a large file.
    """
    if not dist.is_initialized():
        if error is not None:
            raise error
        return
    failures: list[str | None] = [None] * world_size()
    dist.all_gather_object(failures, str(error) if error else None, _patient)
    failed = [number for number, failure in enumerate(failures) if failure]
    if not failed:
        return
    if rank():
        raise SystemExit(2)  # the first rank says it
    alone = len(set(failures)) > 1
    raise UserError(f"rank {failed[0]}: {failures[failed[0]]}" if alone else failures[0]) from error
