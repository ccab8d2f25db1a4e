"""`translution bench busy`: a short training run on a quiet machine and beside other programs.

Each run is a process of its own, as a user starts one, once with libgomp's own waiting and once with
ours (parallel/host/threads.py). The other programs are endless loops, started and ended here.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from parallel.code_folder import CODE_FOLDER
from parallel.errors import UserError
from parallel.host.threads import LIBGOMP_SPIN_COUNT, SPIN_COUNT
from trainer.reporting.table import Table

SPIN_COUNTS = {"libgomp's default": LIBGOMP_SPIN_COUNT, "ours": SPIN_COUNT}
_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class RunTime(NamedTuple):
    """Seconds of one run: wall time, and CPU time of all its threads."""

    wall: float
    cpu: float


def bench_busy(config: Path, overrides: list[str], loops: int, repeat: int) -> Table:
    """Time `repeat` runs of each kind, alternating; the table shows medians.

    Raises UserError with the run's own message if it fails.
    """
    times: dict[tuple[str, bool], list[RunTime]] = {}
    for _ in range(repeat):
        for busy in (False, True):
            for name, spin_count in SPIN_COUNTS.items():
                state = f"beside {loops} loops" if busy else "quiet"
                print(f"measuring {name}, {state} …", file=sys.stderr, flush=True)
                with busy_loops(loops if busy else 0):
                    times.setdefault((name, busy), []).append(_run(config, overrides, spin_count))
    table = Table(f"{config}, {' '.join(overrides)}: seconds, median of {repeat}")
    for name, spin_count in SPIN_COUNTS.items():
        row = f"{name} ({spin_count:,} spins)"
        quiet, busy = times[name, False], times[name, True]
        quiet_wall, busy_wall = _median_wall(quiet), _median_wall(busy)
        table.put(row, "quiet", f"{quiet_wall:.1f}")
        table.put(row, f"beside {loops} loops", f"{busy_wall:.1f}")
        table.put(row, "times", f"{busy_wall / quiet_wall:.1f}")
        table.put(row, "CPU quiet", f"{statistics.median(run.cpu for run in quiet):.1f}")
        table.put(row, "CPU busy", f"{statistics.median(run.cpu for run in busy):.1f}")
    return table


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` processes that compute without end, while the context lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _median_wall(runs: list[RunTime]) -> float:
    return statistics.median(run.wall for run in runs)


def _run(config: Path, overrides: list[str], spin_count: int) -> RunTime:
    env = {name: value for name, value in os.environ.items() if name not in _CHOSEN_BY_USER}
    env |= {
        "GOMP_SPINCOUNT": str(spin_count),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CODE_FOLDER), env.get("PYTHONPATH")])),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trainer", str(config), *overrides, f"run_dir={folder}/run"]
        cpu, wall = _cpu_of_children(), time.perf_counter()
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        wall = time.perf_counter() - wall
    if done.returncode:
        raise UserError(
            f"bench busy: the run failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )
    return RunTime(wall, _cpu_of_children() - cpu)


def _cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended; during a run no other child ends."""
    times = os.times()
    return times.children_user + times.children_system
