"""Halts a training process with HALT_AFTER=50,100: the first start of a run once it has logged step 50,
its second start at step 100, until it gets SIGCONT."""

import os
import signal
import sys
import threading
import time
from pathlib import Path


def _halt(run: Path, step: int) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGSTOP)


_steps = os.environ.get("HALT_AFTER", "").split(",")
_start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
_trains = "submitit.core._submit" in sys.orig_argv and "-evaluation" not in os.environ["SLURM_JOB_NAME"]
if _trains and _start < len(_steps) and _steps[_start]:
    _run = Path(os.environ["RUN"])
    threading.Thread(target=_halt, args=(_run, int(_steps[_start])), daemon=True).start()
