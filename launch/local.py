"""`translution train` on one machine: in this process for one device, else one process per device."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import FrameType

from parallel.errors import UserError

_DEBUG_STEPS = 5
_GRACE_SECONDS = 10.0


def train_here(
    config: str | None, overrides: list[str], resume: Path | None, processes: int | None, debug: bool
) -> int:
    """Train with one process per device: in this one, so that a debugger works, if there is one device.

    Returns the exit code; raises what trainer.setup.train() raises when it is this process.
    """
    from trainer.setup import split_words, train

    config, overrides = split_words(config, overrides)
    if debug:
        overrides = debug_overrides(config, overrides)
    count = processes or _device_count()
    if count == 1:
        if debug:
            import torch

            torch.autograd.set_detect_anomaly(True)
        train(config, overrides, resume)
        return 0
    words = [*([config] if config else []), *overrides, *(["--resume", str(resume)] if resume else [])]
    return train_processes([*words, *(["--debug"] if debug else [])], count)


def debug_overrides(config: str | None, overrides: list[str]) -> list[str]:
    """`overrides` with a few steps, each logged, and data loaded in the training process, unless they
    say otherwise. A resumed run, which has no config here, keeps its number of steps."""
    few = {"train.steps": str(_DEBUG_STEPS), "train.warmup_steps": "0", "train.log_every": "1"}
    given = {override.split("=")[0] for override in overrides}
    if config is None or "train.steps" in given:
        few = {"train.log_every": "1"}
    more = [f"{key}={value}" for key, value in few.items() if key not in given]
    if config is None or "data.workers" in given:
        return more + overrides
    from trainer.config.run import load_config

    try:
        load_config(config, [*overrides, "data.workers=0"])
    except UserError:  # this data has no workers
        return more + overrides
    return [*more, "data.workers=0", *overrides]


def _device_count() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def train_processes(words: list[str], count: int) -> int:
    """Start `count` processes of `python -m trainer WORDS` here; returns the code of the first to fail.

    Ctrl-C reaches them by the terminal, SIGTERM is passed on; they save and stop at one step. When one
    fails the others, which would wait for it, are ended.
    """
    root = str(Path(__file__).resolve().parent.parent)
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "TRANSLUTION_LIFE": uuid.uuid4().hex,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGUSR2)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        for number in range(count):
            env = shared | {"RANK": str(number), "LOCAL_RANK": str(number)}
            ranks.append(subprocess.Popen([sys.executable, "-m", "trainer", *words], env=env))
        return _first_failure(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, old in before.items():
            signal.signal(number, old)


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; the code of the first that fails, once the others have had the time to end too."""
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
