"""Checks before a job runs: whether the model fits in memory, and whether a save fits in the signal delay."""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from launch.slurm.allocation import Allocation
from parallel.mesh import mesh_of
from parallel.planner.plan import plan
from parallel.planner.units import size_text
from trainer.config.run import RunConfig
from trainer.config.study import run_members

_SAVED_BYTES = 12
"""Per parameter: the weight and Adam's two moments, in float32."""

_TEST_BYTES = 16 * 2**20


class MemoryNeed(NamedTuple):
    """A line to print, whether the job fits (None: not known), and the bytes of a checkpoint."""

    line: str
    fits: bool | None
    save_bytes: int


def memory_need(config: RunConfig, allocation: Allocation) -> MemoryNeed:
    """Planned peak memory of the fullest process, for the largest net of `config`, and whether it fits."""
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
    largest = max(plans, key=lambda each: each.memory.needed)
    saved = _SAVED_BYTES * max(each.total for each in plans)
    available = _bytes_per_process(allocation)
    line = f"memory: {largest.summary()}"
    fits = available is not None and largest.fits(available)
    if available is None or (fits and not largest.complete):
        return MemoryNeed(line, None, saved)
    verdict = "fits into" if fits else "does not fit into"
    return MemoryNeed(f"{line}; {verdict} the {size_text(available)} of a process", fits, saved)


def _bytes_per_process(allocation: Allocation) -> float | None:
    if allocation.gpus_per_node:
        return allocation.device_memory_gb and allocation.device_memory_gb * 1e9
    return allocation.mem_gb and allocation.mem_gb * 1e9 / allocation.processes_per_node


def last_save_seconds(run: Path) -> float | None:
    """Seconds of the slowest of the last few saves of a run, or of a study's nets; None if none was made."""
    newest: list[float] = []
    for path in (run / "saves.jsonl", *run.glob("*/saves.jsonl")):
        if path.exists():
            newest += [json.loads(line)["seconds"] for line in path.read_text().splitlines()[-5:] if line]
    return max(newest, default=None)


def estimated_save_seconds(size: int, folder: Path) -> float:
    """Seconds to write a checkpoint of `size` bytes into `folder`, judged by how long a small file takes."""
    test_file = folder / f".speed-{os.getpid()}"
    start = time.perf_counter()
    try:
        with test_file.open("wb") as file:
            file.write(bytes(_TEST_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        test_file.unlink(missing_ok=True)
    return size * (time.perf_counter() - start) / _TEST_BYTES


def save_warning(seconds: float, source: str, delay: int) -> str | None:
    """A warning if a save takes more than half of the `delay` seconds between Slurm's signal and the end.

    The other half is for the step in progress. `source` says where `seconds` comes from.
    """
    if 2 * seconds <= delay:
        return None
    return (
        f"warning: a save takes about {seconds:.0f} s ({source}), too long for signal_delay={delay} s; "
        f"give --signal-delay {max(round(3 * seconds), 30)}"
    )
