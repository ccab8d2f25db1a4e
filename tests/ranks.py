"""Training runs on several processes."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from parallel.mesh import forget_mesh
from parallel.spawn import free_port, run_processes
from trainer.__main__ import main
from trainer.run_directory.run_directory import RunDirectory


class Ended(NamedTuple):
    """Exit codes and stderr of one run, by rank."""

    codes: list[int]
    errors: list[str]


def train_on(world: int, runs: Sequence[Sequence[str]], seconds: float) -> list[Ended]:
    """Train each run, given by its arguments, on the same `world` processes; "{rank}" becomes the rank."""
    ports = [free_port() for _ in runs]
    by_rank = run_processes(_train, world, [list(arguments) for arguments in runs], ports, seconds=seconds)
    return [
        Ended([codes for codes, _ in ends], [text for _, text in ends]) for ends in zip(*by_rank, strict=True)
    ]


def _train(runs: list[list[str]], ports: list[int]) -> list[tuple[int, str]]:
    ends = []
    for arguments, port in zip(runs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                code = main([each.replace("{rank}", os.environ["RANK"]) for each in arguments])
            except SystemExit as end:
                code = end.code
        forget_mesh()
        ends.append((code, errors.getvalue()))
    return ends


@contextlib.contextmanager
def start_ranks(world: int, arguments: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start `python -m trainer ARGUMENTS` on `world` processes; kills those that are left at the end."""
    rendezvous = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env = os.environ | rendezvous | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "trainer", *arguments],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def losses(run: Path) -> list[float]:
    """The loss of every logged step."""
    return [row["loss"] for row in RunDirectory(run).read_metrics() if "loss" in row]
