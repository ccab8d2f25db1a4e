"""Runs that are killed at random, and started again with the same command, end as if nothing had happened.

A *kill* is SIGKILL to one rank or to all, at a random moment of the run or, every fourth, inside a save.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from tests.faulty_ranks import exit_codes, started
from tests.tiny import TINY
from trainer.run_directory.run_directory import RunDirectory

CONFIG = TINY | {
    "model": TINY["model"] | {"dropout": 0.1},
    "data": {"kind": "synthetic", "test_samples": 20},
    "train": TINY["train"] | {"steps": 24, "checkpoint_every": 4, "evaluate_every": 8, "log_every": 1},
}
ZERO_3 = ("parallel.engine=deepspeed", "parallel.zero=3")
RUNS = {"torch-1": (1, ()), "torch-2": (2, ("parallel.offset=2",)), "zero-3-2": (2, ZERO_3)}
MORE_RUNS = {"torch-4": (4, ("parallel.offset=2",)), "zero-3-4": (4, (*ZERO_3, "parallel.offset=2"))}
COLUMNS = ("step", "samples", "loss", "grad_norm", "lr", "evaluation")


def history(run: Path) -> list[dict[str, Any]]:
    """Everything in metrics.jsonl but the speed."""
    rows = RunDirectory(run).read_metrics()
    return [{key: row[key] for key in COLUMNS if key in row} for row in rows]


def call_in_save(number: int | None, calls: Path) -> None:
    """Every save counts the calls that it makes, of Python and of C; the process kills itself at call
    `number` of its saves. The count of the longest save is written to `calls`."""
    from trainer.reporting.recorder import Recorder

    save, count = Recorder.save, 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(recorder: Recorder) -> None:
        nonlocal count
        if number is None:
            count = 0
        threading.setprofile(profile)  # for the thread that a save is written in
        sys.setprofile(profile)
        try:
            save(recorder)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        if number is None and os.environ["RANK"] == "0" and count > int(calls.read_text() or 0):
            calls.write_text(str(count))

    Recorder.save = counted


def kill_rank(rank: int, number: int, calls: Path) -> None:
    if os.environ["RANK"] == str(rank):
        call_in_save(number, calls)


class Kills:
    """An undisturbed run to compare with, and disturbed ones of the same config."""

    def __init__(self, folder: Path, world: int, overrides: tuple[str, ...], seed: int) -> None:
        self.folder, self.world, self.seed, self.random = folder, world, seed, random.Random(seed)
        folder.mkdir()
        (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        self.arguments = [folder / "tiny.yaml", "--requeued", *overrides]
        self.calls = folder / "calls"
        self.calls.write_text("")
        begin = time.monotonic()
        assert self._start("whole", partial(call_in_save, None, self.calls)) == [0] * world, self._log(
            "whole"
        )
        self.seconds = time.monotonic() - begin
        self.expected = history(folder / "whole")
        self.kills = self.kills_in_saves = 0

    def disturb(self, name: str, kills: int) -> None:
        """Start a run until it has been killed `kills` times, then let it end; compare."""
        run, killed = self.folder / name, 0
        while killed < kills:
            in_save = (self.kills + self.seed) % 4 == 3
            codes = self._killed_in_a_save(name) if in_save else self._killed_at_any_time(name)
            if 0 in codes:  # it had ended before
                assert history(run) == self.expected
                shutil.rmtree(run)
                self.seconds *= 0.7  # the undisturbed run also waited for the imports
            assert set(codes) <= {0, 1, -signal.SIGKILL}, self._log(name)
            if -signal.SIGKILL not in codes:
                continue
            killed += 1
            self.kills += 1
            self.kills_in_saves += in_save
        assert self._start(name) == [0] * self.world, self._log(name)
        assert history(run) == self.expected

    def _start(self, name: str, fault: Any = None) -> list[int]:
        arguments = [*self.arguments, f"run_dir={self.folder / name}"]
        with started(self.world, arguments, fault, self.folder / f"{name}.log") as ranks:
            return exit_codes(ranks, 60)

    def _killed_at_any_time(self, name: str) -> list[int]:
        """One rank or all, within the time that the whole run took."""
        victims = self.random.choice([[self.random.randrange(self.world)], range(self.world)])
        arguments = [*self.arguments, f"run_dir={self.folder / name}"]
        with started(self.world, arguments, None, self.folder / f"{name}.log") as ranks:
            time.sleep(self.random.uniform(0.3, 1.0) * self.seconds)
            for victim in victims:
                ranks[victim].kill()
            return exit_codes(ranks, 60, grace=3)

    def _killed_in_a_save(self, name: str) -> list[int]:
        rank = self.random.randrange(self.world) if self.random.random() < 0.5 else 0
        number = self.random.randrange(1, 2 * int(self.calls.read_text()))
        return self._start(name, partial(kill_rank, rank, number, self.calls))

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.mark.parametrize(
    ("name", "seed", "count"), [("torch-1", 1, 6), ("torch-2", 2, 4), ("zero-3-2", 3, 2)], ids=[*RUNS]
)
def test_a_run_killed_twelve_times_in_all_has_the_history_of_an_undisturbed_one(
    name: str, seed: int, count: int, tmp_path: Path
):
    kills = Kills(tmp_path / name, *RUNS[name], seed)
    kills.disturb("disturbed", count)
    assert (kills.kills, kills.kills_in_saves) == (count, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*RUNS, *MORE_RUNS])
def test_runs_killed_forty_times_have_the_history_of_an_undisturbed_one(name: str, tmp_path: Path):
    kills = Kills(tmp_path / name, *(RUNS | MORE_RUNS)[name], seed=len(name))
    for number in range(10):
        kills.disturb(f"disturbed-{number}", 4)
    print(f"{name}: {kills.kills} kills, {kills.kills_in_saves} of them inside a save")
    assert (kills.kills, kills.kills_in_saves) == (40, 10)
