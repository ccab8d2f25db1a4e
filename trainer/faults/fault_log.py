"""faults.jsonl: what went wrong in a run, and which start of it noticed.

Imports nothing heavy: the last step of a Slurm job reads it in the seconds before the job ends.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from parallel.errors import RankFailure, UserError
from trainer.errors import Interrupted
from trainer.run_directory.ownership import START_TOKEN

FAULTS_FILE = "faults.jsonl"


def note_fault(run_dir: Path, fault: str, **values: Any) -> None:
    """Append a fault ("skipped", "went back", "drift", "lost rank", "out of memory", "hang", "crash").

    A file system that refuses is no second fault: the line is left out.
    """
    record = {"fault": fault, "time": time.time(), "start": os.environ.get(START_TOKEN)} | values
    with suppress(OSError), (run_dir / FAULTS_FILE).open("a") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def noting_faults(run_dir: Path) -> Iterator[None]:
    """Notes, of this rank, a RankFailure that it reports, and any error that no other line explains."""
    try:
        yield
    except RankFailure as failure:
        if failure.reports:
            note_fault(run_dir, failure.fault, rank=_rank(), what=str(failure))
        raise
    except (UserError, Interrupted):
        raise
    except Exception as error:
        note_fault(run_dir, "crash", rank=_rank(), what=f"{type(error).__name__}: {error}")
        raise


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def read_faults(run_dir: Path, start: str | None = None) -> list[dict[str, Any]]:
    """All faults, oldest first, or those that one start noticed; lines cut short by a crash are skipped."""
    path, faults = run_dir / FAULTS_FILE, []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            faults.append(json.loads(line))
    return [fault for fault in faults if start is None or fault["start"] == start]
