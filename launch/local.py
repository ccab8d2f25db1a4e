"""`translution train` on one machine with several processes, one per device."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import FrameType

import torch

from parallel.code_folder import CODE_FOLDER
from parallel.spawn import describe_rank, free_port
from trainer.run_directory.ownership import START_TOKEN

_GRACE_SECONDS = 10.0


def device_count() -> int:
    """The number of CUDA devices of this machine, at least 1."""
    return max(1, torch.cuda.device_count())


def train_processes(
    config: str | None, overrides: list[str], resume: Path | None, debug: bool, count: int, bind: bool = False
) -> int:
    """Train with `count` processes of `python -m trainer` on this machine; returns the exit code of the
    first that fails, or 0.

    They get Ctrl-C from the terminal, and SIGTERM from here; they save and stop at the same step. When
    one fails, the others, which would wait for it, are killed.
    """
    arguments = [*([config] if config else []), *overrides]
    arguments += ["--resume", str(resume)] if resume else []
    arguments += ["--bind"] if bind else []
    arguments += ["--debug"] if debug else []
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CODE_FOLDER), os.environ.get("PYTHONPATH")])),
        START_TOKEN: uuid.uuid4().hex,
    }
    port = free_port()
    ranks: list[subprocess.Popen[bytes]] = []

    def forward_signal(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    before = {n: signal.signal(n, forward_signal) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        for number in range(count):
            env = shared | describe_rank(number, count, port)
            ranks.append(subprocess.Popen([sys.executable, "-m", "trainer", *arguments], env=env))
        return _first_failure(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, old in before.items():
            signal.signal(number, old)


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all ranks; once one has failed, give the others a few seconds and return its code."""
    deadline, code = float("inf"), 0
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        failed = [each for each in codes if each]
        if failed and not code:
            code, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
        if None not in codes:
            break
        time.sleep(0.05)
    return code if code >= 0 else 128 - code
