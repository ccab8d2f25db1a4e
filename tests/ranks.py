"""Several runs of `python -m trainer`, one after another, in each of a few processes."""

import contextlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from parallel.mesh import forget_mesh
from parallel.spawn import run_processes
from trainer.__main__ import main
from trainer.run_directory.run_directory import RunDirectory


class Ended(NamedTuple):
    """How one run ended on each rank."""

    codes: list[int]
    errors: list[str]


def train_on(world: int, runs: Sequence[Sequence[str]], seconds: float) -> list[Ended]:
    """Each run's words on `world` processes; "{rank}" in a word is the number of the process.

    Starting processes takes longer than a small run, so they are started once for all runs.
    """
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in runs]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    by_rank = run_processes(_train, world, [list(words) for words in runs], ports, seconds=seconds)
    return [
        Ended([codes for codes, _ in ends], [text for _, text in ends]) for ends in zip(*by_rank, strict=True)
    ]


def _train(runs: list[list[str]], ports: list[int]) -> list[tuple[int, str]]:
    ends = []
    for words, port in zip(runs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                code = main([word.replace("{rank}", os.environ["RANK"]) for word in words])
            except SystemExit as end:
                code = end.code
        forget_mesh()
        ends.append((code, errors.getvalue()))
    return ends


@contextlib.contextmanager
def started(world: int, words: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """`python -m trainer` with these words on `world` processes, as a launcher that ends none would;
    at the end none is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = os.environ | meeting | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "trainer", *words],
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
    """Of every step."""
    return [row["loss"] for row in RunDirectory(run).read_metrics() if "loss" in row]
