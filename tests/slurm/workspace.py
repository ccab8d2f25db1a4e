"""Where the tests of Slurm play: a directory to submit from, a run's notes, processes that wait."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import yaml

from launch.slurm.runs.job_record import read_facts, read_notes
from tests.slurm.conftest import Box
from trainer.run_directory.run_directory import RunDirectory

STEPS = 400
LONG = (f"train.steps={STEPS}", "train.checkpoint_every=25", "train.log_every=5")
QUICK = ("--time", "10", "--signal-delay", "30")
HOLD = Path(__file__).parent / "hold"
WHOLE_NODE = ("--cpus-per-task", "8")


def hold(*steps: int) -> tuple[str, str]:
    """Options by which the first start of a run halts after the first of these steps, and so on."""
    return "--setup", f"export PYTHONPATH={HOLD}:$PYTHONPATH HOLD={','.join(map(str, steps))}"


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in RunDirectory(run).read_metrics() if "loss" in r]


def step(run: Path) -> int:
    return max((number for number, _ in losses(run)), default=0)


def events(run: Path) -> list[str]:
    return [note["event"] for note in read_notes(run)]


def starts(run: Path) -> int:
    return events(run).count("start")


def job(run: Path) -> str:
    found = read_facts(run).job
    assert found
    return found


class Stage:
    """Where one story plays: the box, and a directory of its own to submit from."""

    def __init__(self, box: Box, work: Path, tiny: dict) -> None:
        self.box = box
        self.work = work
        (work / "tiny.yaml").write_text(yaml.safe_dump(tiny))

    def translution(self, *words: object, code: int = 0) -> str:
        return self.box.translution(*words, cwd=self.work, code=code)

    def submit(self, *words: str, options: tuple[str, ...] = QUICK, config: Path = Path("tiny.yaml")) -> Path:
        out = self.translution("submit", config, *words, *options)
        found = re.search(r"run directory (\S+)", out)
        assert found, out
        return self.work / found[1]

    def held(self, run: Path, number: int) -> int:
        """Wait until the run's process has halted after a step; returns its number on this machine."""
        self.box.until(lambda: step(run) >= number, 100, f"{run} reaches step {number}")
        pid = task_pid(run)
        self.box.until(lambda: not signalled(pid), 10, "it has halted")
        assert step(run) < STEPS, "has not halted in time"
        return pid

    def let_go(self, pid: int, seconds: float) -> None:
        """Let a halted process go on as soon as it has been sent a signal."""
        self.box.until(lambda: signalled(pid), seconds, "a signal is sent")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def task_pid(run: Path) -> int:
    """The training process of the run, as this machine sees it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            folder = str(run / "slurm").encode()
            if b"submitit.core._submit" in words and folder in words and b"srun" not in words[0]:
                return int(path.parent.name)
    raise AssertionError(f"no process trains {run}")


def signalled(pid: int) -> bool:
    """Whether a halted process has a signal waiting, or has gone on, or is gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return True
    waiting = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    return waiting != 0 or not lines["State"].strip().startswith("T")
