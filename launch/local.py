"""`translution train` on one machine with several processes, one per device."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from parallel.code_folder import CODE_FOLDER
from parallel.spawn import describe_rank, free_port
from trainer.run_directory.ownership import START_TOKEN

GRACE_SECONDS = 10.0
Process = subprocess.Popen[bytes]


def device_count() -> int:
    """The number of CUDA devices of this machine, at least 1."""
    return max(1, torch.cuda.device_count())


def train_processes(
    config: str | None, overrides: list[str], resume: Path | None, debug: bool, count: int, bind: bool = False
) -> int:
    """Train with `count` processes on this machine; returns as `run_processes` does."""
    arguments = [*([config] if config else []), *overrides]
    arguments += ["--resume", str(resume)] if resume else []
    arguments += ["--bind"] if bind else []
    return run_processes([*arguments, *(["--debug"] if debug else [])], count)


def run_processes(arguments: list[str], count: int) -> int:
    """Run `count` processes of `python -m trainer ARGUMENTS` on this machine; returns the exit code of the
    first that fails, or 0.

    They get Ctrl-C from the terminal, and SIGTERM from here; they save and stop at the same step. When
    one fails, the others, which would wait for it, are killed.
    """
    ranks: list[Process] = []
    with passing_signals_to(ranks):
        start_ranks(arguments, count, ranks)
        return _first_failure(ranks)


def start_ranks(
    arguments: list[str], count: int, ranks: list[Process], output: Path | None = None, share: int = 1
) -> None:
    """Start `count` processes of `python -m trainer`, which connect to each other, and add them to `ranks`.

    What they print goes to the file `output`, by default where this process prints. Their threads take one
    of `share` parts of the cores.
    """
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (count * share))),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CODE_FOLDER), os.environ.get("PYTHONPATH")])),
        START_TOKEN: uuid.uuid4().hex,
    }
    port = free_port()
    with output.open("ab") if output else contextlib.nullcontext() as file:
        for number in range(count):
            env = shared | describe_rank(number, count, port)
            command = [sys.executable, "-m", "trainer", *arguments]
            ranks.append(subprocess.Popen(command, env=env, stdout=file, stderr=file and subprocess.STDOUT))


@contextlib.contextmanager
def passing_signals_to(ranks: list[Process]) -> Iterator[list[int]]:
    """While it lasts signals go to the processes in `ranks`, which get Ctrl-C from the terminal; at its end
    those that are left are killed. Gives the numbers of the signals that came."""
    seen: list[int] = []

    def forward_signal(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        for process in ranks if number != signal.SIGINT else ():
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, forward_signal) for number in numbers}
    try:
        yield seen
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, old in before.items():
            signal.signal(number, old)


def _first_failure(ranks: list[Process]) -> int:
    """Wait for all ranks; once one has failed, give the others a few seconds and return its code."""
    deadline, code = float("inf"), 0
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        failed = [each for each in codes if each]
        if failed and not code:
            code, deadline = failed[0], time.monotonic() + GRACE_SECONDS
        if None not in codes:
            break
        time.sleep(0.05)
    return code if code >= 0 else 128 - code
