"""A run's Slurm files: `slurm.json`, written at submission, and `lives.jsonl`, events that its jobs append.

Imports nothing heavy: the batch script reads these in the seconds before a job ends.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parallel.errors import UserError
from trainer.atomic_write import atomic_write

RECORD_FILE = "slurm.json"
EVENTS_FILE = "lives.jsonl"
SUBMITTED_CONFIG = "submitted.yaml"


@dataclass
class JobRecord:
    """The jobs of one run.

    jobs     Slurm's job ids, newest last
    logs     folder of the newest job's output
    folder   where `submit` was called; jobs start there
    data     data folders, which containers mount
    """

    config_hash: str
    allocation: dict[str, Any]
    jobs: list[str] = field(default_factory=list)
    logs: str = ""
    submitted: float = field(default_factory=time.time)
    evaluation_jobs: list[str] = field(default_factory=list)
    cancelled: bool = False
    folder: str = field(default_factory=os.getcwd)
    data: list[str] = field(default_factory=list)

    @property
    def job(self) -> str | None:
        return self.jobs[-1] if self.jobs else None


def read_record(run: Path) -> JobRecord:
    """Raises UserError if `run` was not submitted to Slurm."""
    try:
        return JobRecord(**json.loads((run / RECORD_FILE).read_text()))
    except FileNotFoundError:
        raise UserError(f"{run}: was not submitted to Slurm: it has no {RECORD_FILE}") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{run / RECORD_FILE}: is damaged: {error}") from None


def write_record(run: Path, record: JobRecord) -> None:
    """Replace slurm.json."""
    atomic_write(run / RECORD_FILE, json.dumps(asdict(record), indent=2) + "\n")


def claim_run(run: Path, record: JobRecord) -> bool:
    """Create `run` with its slurm.json; False if another submission already has."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        with (run / RECORD_FILE).open("x") as file:
            json.dump(asdict(record), file, indent=2)
    except FileExistsError:
        return False
    return True


def log_event(run: Path, event: str, **values: Any) -> None:
    """Append a job event, with the job's id, its restart count and the time."""
    record = {"event": event, "job": job_id(), "restart": restart_count(), "time": time.time()} | values
    with (run / EVENTS_FILE).open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_events(run: Path) -> list[dict[str, Any]]:
    """All job events, oldest first; lines cut short by a crash are skipped."""
    path = run / EVENTS_FILE
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def restarts(run: Path) -> int:
    """How often the run was restarted, over all its jobs."""
    return max(0, sum(event["event"] == "start" for event in read_events(run)) - 1)


def job_id() -> str:
    """The id of the running job; each element of an array has its own."""
    return os.environ.get("SLURM_JOB_ID", "")


def start_token() -> str:
    """What START_TOKEN is for the running job's present start."""
    return f"job {job_id()}, start {restart_count()}"


def restart_count() -> int:
    """How often Slurm has requeued the running job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)
