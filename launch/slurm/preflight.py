"""Checks before a job runs: whether the model fits in memory, and whether a save fits in the signal delay."""

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from launch.slurm.allocation import Allocation
from launch.slurm.nodes import Memory, partition_nodes, process_memory
from parallel.errors import UserError
from parallel.mesh import mesh_of
from parallel.planner.plan import plan
from parallel.planner.units import size_text
from trainer.config.run import RunConfig
from trainer.config.study import run_members

_SAVED_BYTES = 12
"""Per parameter: the weight and Adam's two moments, in float32."""

_TEST_BYTES = 16 * 2**20
_SMALL_BYTES = 4e9  # every card that trains today has more


class MemoryNeed(NamedTuple):
    """What a job needs: `peak` bytes of the fullest process, `save` bytes of a checkpoint; `plan` says it in
    a line, and `complete` whether all of it could be planned."""

    plan: str
    peak: float
    save: int
    complete: bool

    def verdict(self, memory: Memory | None) -> "Verdict":
        """Compare with the memory of a process."""
        line = f"memory: {self.plan}"
        if memory is None:
            line += "; not compared: the memory of a process is not known"
            return Verdict(line, None, self.peak > _SMALL_BYTES)
        best, worst = memory.most_gb * 1e9, memory.least_gb * 1e9
        if self.peak > best:
            line += f"; does not fit into the {size_text(best)} of a process ({memory.source})"
            return Verdict(line, False)
        if self.peak > worst:
            line += f"; fits into {size_text(best)}, but some nodes have {size_text(worst)} for a process"
            return Verdict(line, None, True)
        if not self.complete:
            return Verdict(f"{line}; what could be planned fits into {size_text(worst)} of a process", None)
        return Verdict(f"{line}; fits into the {size_text(worst)} of a process", True)


class Verdict(NamedTuple):
    """A line to print, whether the job fits (None: not known), and whether a person has to decide."""

    line: str
    fits: bool | None
    ask: bool = False


def nodes_memory(allocation: Allocation) -> Memory | None:
    """The memory that a process of the allocation will have; see `process_memory`."""
    return process_memory(allocation, partition_nodes(allocation.partition, allocation.constraint))


def refuse_too_large(verdict: Verdict) -> None:
    """Raise UserError for a net that does not fit."""
    if verdict.fits is False:
        raise UserError(f"{verdict.line}; ask for more memory, shard the model, or give --force")


def confirm(verdict: Verdict) -> None:
    """Ask whether to submit a job that may not fit; where nobody can answer, only say what would help."""
    if not verdict.ask:
        return
    if not sys.stdin.isatty():
        print("warning: it may not fit into memory; give --device-memory-gb or --mem-gb to have it checked")
        return
    if input(f"{verdict.line}\nSubmit it all the same? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("not submitted; give --device-memory-gb or --mem-gb to have the memory checked")


def memory_need(config: RunConfig, allocation: Allocation) -> MemoryNeed:
    """Planned peak memory of the fullest process, for the largest net of `config`."""
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
    return MemoryNeed(largest.summary(), largest.memory.peak, saved, largest.complete)


def check_data(config: RunConfig) -> None:
    """Raise UserError for a file or folder of the config that does not exist on this machine."""
    for member in run_members(config):
        named = {f"data.{key}": value for key, value in dict(member.config.data).items()}
        named["train.init_from"] = member.config.train.init_from
        for key, value in named.items():
            if isinstance(value, Path) and not value.exists():
                raise UserError(
                    f"{key}={value}: no such file or folder on this machine; "
                    "give --force if only the nodes see it"
                )


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
