"""What the planner says, before a job runs, of the memory its net needs and of the bytes of a save."""

from typing import NamedTuple

from launch.slurm.allocation import Allocation
from parallel.mesh import mesh_of
from parallel.planner.plan import plan
from parallel.planner.units import size_text
from trainer.config.run import RunConfig
from trainer.config.study import run_members

_SAVED_BYTES = 12
"""Per parameter: the weight and Adam's two moments in float32."""


class MemoryNeed(NamedTuple):
    """A line for the person, whether the job fits (None: not known), and a checkpoint's bytes."""

    line: str
    fits: bool | None
    save_bytes: int


def memory_need(config: RunConfig, allocation: Allocation) -> MemoryNeed:
    """The peak of the fullest process, of the net of `config` that needs most, against what there is."""
    plans = [
        plan(
            net.model,
            net.parallel,
            mesh_of(net.parallel, allocation.processes),
            net.train.batch,
            net.train.accumulate,
            net.precision,
            cpu=allocation.gpus_per_node is None,
        )
        for net in [member.config for member in run_members(config)]
    ]
    largest = max(plans, key=lambda each: each.memory.peak)
    saved = _SAVED_BYTES * max(each.total for each in plans)
    have = _bytes_per_process(allocation)
    line = f"memory: {largest.summary()}"
    if have is None:
        return MemoryNeed(line, None, saved)
    fits = largest.fits(have)
    verdict = "fits into" if fits else "does not fit into"
    return MemoryNeed(f"{line}; {verdict} the {size_text(have)} of a process", fits, saved)


def _bytes_per_process(allocation: Allocation) -> float | None:
    if allocation.gpus_per_node:
        return allocation.device_memory_gb and allocation.device_memory_gb * 1e9
    return allocation.mem_gb and allocation.mem_gb * 1e9 / allocation.processes_per_node
