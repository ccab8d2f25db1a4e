"""How long a save takes, measured or estimated, against the time a warned job has left."""

import json
import os
import time
from pathlib import Path

_PROBE_BYTES = 16 * 2**20


def last_save_seconds(run: Path) -> float | None:
    """Seconds of the longest of the newest few saves of a run or of its nets; None when there is none."""
    newest: list[float] = []
    for path in (run / "saves.jsonl", *run.glob("*/saves.jsonl")):
        if path.exists():
            newest += [json.loads(line)["seconds"] for line in path.read_text().splitlines()[-5:] if line]
    return max(newest, default=None)


def estimated_save_seconds(size: int, folder: Path) -> float:
    """Seconds to write a checkpoint of `size` bytes beside the run, from the speed of a small file."""
    probe = folder / f".speed-{os.getpid()}"
    start = time.perf_counter()
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    return size * (time.perf_counter() - start) / _PROBE_BYTES


def save_warning(seconds: float, how: str, delay: int) -> str | None:
    """A line when a warning `delay` seconds ahead leaves too little for a step and a save."""
    if 2 * seconds <= delay:
        return None
    return (
        f"warning: a save takes about {seconds:.0f} s ({how}); "
        f"signal_delay={delay} s is short, give --signal-delay {max(round(3 * seconds), 30)}"
    )
