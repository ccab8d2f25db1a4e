"""Reports a lost rank or an out-of-memory as one RankFailure."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.errors import RankFailure

# Messages of gloo, of the rendezvous store and of NCCL.
_LOST = re.compile(
    r"Connection (closed|reset) by|Broken pipe|Socket (Timeout|closed)|[Tt]imed out|remote process exited|"
    r"NCCL (error|communicator was aborted)|failed to (recv|send)|recvValue"
)
_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_ROLL_CALL_SECONDS = 5.0  # within which the remaining ranks notice the loss too


@contextmanager
def explain_rank_failures(advice: str = "") -> Iterator[None]:
    """Raise a RankFailure for errors in this rank that a lost rank or too little memory caused; `advice`
    ends the line on a lost rank."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        failure = _failure(error, advice)
        if failure is None:
            raise
        raise failure from error


def _failure(error: RuntimeError | MemoryError, advice: str) -> RankFailure | None:
    several = dist.is_initialized() and dist.get_world_size() > 1
    who = f"rank {dist.get_rank()} of {dist.get_world_size()}" if several else "this process"
    reason = re.sub(r"^(\[[^]]*\] ?)+", "", str(error).split("\n")[0]).split(". ")[0].strip()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _MEMORY.search(reason):
        message = f"{who} is out of memory: {reason}; translution plan CONFIG shows what fits"
        return RankFailure(message, fault="out of memory")
    if several and (isinstance(error, dist.DistError) or _LOST.search(reason)):
        first, lost = _roll_call()
        names = f", probably rank {', '.join(map(str, lost))}" if lost else ""
        return RankFailure(
            f"{who} lost another process of this run{names}, which was killed or whose machine failed "
            f"({reason}){advice}",
            reports=first,
            fault="lost rank",
        )
    return None


def _roll_call() -> tuple[bool, list[int]]:
    """Whether this rank is the one that reports: the first to ask the store, or rank 1 if the store was lost
    with rank 0. To it also the ranks that do not answer."""
    own, world = dist.get_rank(), dist.get_world_size()
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=5))
        store.set(f"translution/here/{own}", "")
        if store.add("translution/lost", 1) > 1:
            return False, []
        end, missing = time.monotonic() + _ROLL_CALL_SECONDS, list(range(world))
        while len(missing) > 1 and time.monotonic() < end:
            missing = [each for each in missing if not store.check([f"translution/here/{each}"])]
            time.sleep(0.05)
        return True, missing
    except RuntimeError:
        return own == 1, [0]
