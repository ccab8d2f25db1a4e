"""What is known before a job runs of the memory its net needs, and of the bytes of a save."""

from typing import NamedTuple

import torch

from launch.allocation import Allocation
from models import build_model
from trainer.config import RunConfig
from trainer.study import study_members

_BYTES = 16
"""Per parameter: weight, gradient and Adam's two moments in float32."""
_SAVED_BYTES = 12


class MemoryNeed(NamedTuple):
    """A line for the person, whether the job fits (None: not known), and a checkpoint's bytes."""

    line: str
    fits: bool | None
    save_bytes: int


def memory_need(config: RunConfig, allocation: Allocation) -> MemoryNeed:
    """The states of the largest net of `config` against what one process has.

    The states alone, replicated: activations and sharding are the planner's to add.
    """
    from pathlib import Path

    nets = [member.config for member in study_members(config, Path())] or [config]
    largest = 0
    for net in nets:
        with torch.device("meta"):
            largest = max(largest, sum(p.numel() for p in build_model(net.model).parameters()))
    need = largest * _BYTES
    line = f"memory: {largest:,} parameters, {_size(need)} of weights, gradients and optimizer states"
    have = _bytes_per_process(allocation)
    if have is None:
        return MemoryNeed(line, None, largest * _SAVED_BYTES)
    verdict = "of" if need <= have else "does not fit in"
    return MemoryNeed(f"{line}; {verdict} {_size(have)} per process", need <= have, largest * _SAVED_BYTES)


def _bytes_per_process(allocation: Allocation) -> float | None:
    if allocation.gpus_per_node:
        return allocation.device_memory_gb and allocation.device_memory_gb * 1e9
    return allocation.mem_gb and allocation.mem_gb * 1e9 / allocation.processes_per_node


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
