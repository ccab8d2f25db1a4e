"""A folder on the simulated cluster to submit runs from, and how to watch and halt them."""

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from launch.slurm.runs.job_record import read_events, read_record
from tests.slurm.cluster import Cluster
from trainer.run_directory.run_directory import RunDirectory

Losses = list[tuple[int, float]]
"""Step and loss."""

STEPS = 200
LONG = (f"train.steps={STEPS}", "train.checkpoint_every=25", "train.log_every=5")
CHECKED = ("--time", "10", "--signal-delay", "30")
OPTIONS = (*CHECKED, "--no-check")  # the check of hosts has its own test, and costs seconds
WHOLE_NODE = ("--cpus-per-task", "8")
_HALT = Path(__file__).parent / "halt"


CONCURRENT: dict[Callable, Callable[["Workspace"], None]] = {}
"""The bodies of tests marked @concurrent."""


def concurrent(body: Callable[["Workspace"], None]) -> Callable[..., None]:
    """Run this test at the same time as all others marked so: jobs wait more than they compute."""

    @pytest.mark.timeout(600)
    def test(concurrent_results: dict[Callable, Future]) -> None:
        concurrent_results[body].result()

    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
    CONCURRENT[test] = body
    return test


def halt_after(*steps: int) -> tuple[str, str]:
    """Options of `submit`: the run's first start halts after the first of these steps, and so on."""
    return "--setup", f"export PYTHONPATH={_HALT}:$PYTHONPATH HALT_AFTER={','.join(map(str, steps))}"


def losses(run: Path) -> Losses:
    return [(r["step"], r["loss"]) for r in RunDirectory(run).read_metrics() if "loss" in r]


def last_step(run: Path) -> int:
    return max((step for step, _ in losses(run)), default=0)


def events(run: Path) -> list[str]:
    return [each["event"] for each in read_events(run)]


def starts(run: Path) -> int:
    return events(run).count("start")


def job(run: Path) -> str:
    found = read_record(run).job
    assert found
    return found


class Workspace:
    """The cluster, a folder to submit from, and the losses to expect."""

    def __init__(
        self, cluster: Cluster, folder: Path, config: dict, tiny_losses: Losses, long_losses: Losses
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self.tiny_losses = tiny_losses
        self.long_losses = long_losses
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config))

    def translution(self, *arguments: object, code: int = 0) -> str:
        return self.cluster.translution(*arguments, cwd=self.folder, code=code)

    def submit(self, *overrides: str, options: tuple[str, ...] = OPTIONS) -> Path:
        """Submit the tiny config; returns the run directory."""
        out = self.translution("submit", "tiny.yaml", "--no-rehearsal", *overrides, *options)
        found = re.search(r"run directory (\S+)", out)
        assert found, out
        return self.folder / found[1]

    def final_state(self, run: Path) -> str:
        return self.cluster.final_state(job(run))

    def assert_completes(self, run: Path) -> None:
        state = self.final_state(run)
        assert state == "COMPLETED", "\n".join(log.read_text() for log in (run / "slurm").glob("*.out"))

    def wait_for_step(self, run: Path, step: int) -> None:
        self.cluster.until(lambda: last_step(run) >= step, 100, f"{run} reaches step {step}")

    def wait_for_starts(self, run: Path, count: int, seconds: float = 60) -> None:
        self.cluster.until(lambda: starts(run) >= count, seconds, f"start {count}")

    def wait_until_halted(self, run: Path, step: int) -> int:
        """Wait until the run's process has halted after this step; returns its pid on this machine."""
        return self.wait_until_ranks_halted(run, step, 1)[0]

    def wait_until_ranks_halted(self, run: Path, step: int, ranks: int) -> list[int]:
        """Wait until all processes of the run have halted after this step; returns their pids."""
        self.wait_for_step(run, step)

        def halted() -> list[int]:
            return [pid for pid in task_pids(run) if not has_signal(pid)]

        self.cluster.until(lambda: len(halted()) == ranks, 30, f"{ranks} ranks of {run} halt")
        assert last_step(run) < STEPS, "did not halt in time"
        return halted()

    def continue_at_signal(self, pid: int, seconds: float) -> None:
        """Let a halted process continue once it has been sent a signal."""
        self.cluster.until(lambda: has_signal(pid), seconds, "a signal is sent")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def task_pids(run: Path) -> list[int]:
    """The pids, on this machine, of the training processes of the run."""
    own_job = f"SLURM_JOB_ID={job(run)}".encode()  # not that of its evaluation
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (path / "cmdline").read_bytes().split(b"\0")
            is_task = b"submitit.core._submit" in arguments and b"srun" not in arguments[0]
            if is_task and own_job in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def has_signal(pid: int) -> bool:
    """Whether a halted process has a signal pending, has continued, or is gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return True
    pending = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    return pending != 0 or not lines["State"].strip().startswith("T")
