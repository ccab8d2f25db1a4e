"""A run's Slurm files: `slurm.json`, written at submission, and `lives.jsonl`, events that its jobs append.

Imports nothing heavy: the batch script reads these in the seconds before a job ends.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.errors import machine_error

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
    sweep    folder of the sweep that the run was submitted with; `label` names the run within it
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
    sweep: str = ""
    label: str = ""
    evaluate_every: int = 0

    @property
    def job(self) -> str | None:
        return self.jobs[-1] if self.jobs else None


def read_record(run: Path) -> JobRecord:
    """Raises UserError if `run` was not submitted to Slurm, or if its slurm.json is damaged."""
    path, known = run / RECORD_FILE, {each.name for each in fields(JobRecord)}
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise TypeError("expected an object")
        # A newer version may have written more than this one knows: a job keeps the code it began with.
        return JobRecord(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError:
        raise UserError(f"{run}: was not submitted to Slurm: it has no {RECORD_FILE}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    except OSError as error:
        raise machine_error(error, path, "be read") from None


_NEWER = ("sweep", "label", "evaluate_every")
"""Keys that a run submitted earlier does not have."""


def write_record(run: Path, record: JobRecord) -> None:
    """Replace slurm.json."""
    atomic_write(run / RECORD_FILE, _text(record))


def _text(record: JobRecord) -> str:
    """Without values that say nothing: an older version of the code may have to read it."""
    values = {key: value for key, value in asdict(record).items() if value or key not in _NEWER}
    return json.dumps(values, indent=2) + "\n"


def claim_run(run: Path, record: JobRecord) -> bool:
    """Create `run` with its slurm.json; False if another submission already has. Raises UserError."""
    path = run / RECORD_FILE
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = path.open("x")
    except FileExistsError:
        if run.is_dir():
            return False
        raise UserError(f"{run}: is a file, not a run directory") from None
    except OSError as error:
        raise machine_error(error, f"run directory {run}", "be created") from None
    try:
        with file:
            file.write(_text(record))
    except OSError as error:
        path.unlink(missing_ok=True)  # an empty one would look like a run
        with contextlib.suppress(OSError):
            run.rmdir()
        raise machine_error(error, path, "be written") from None
    return True


def log_event(run: Path, event: str, **values: Any) -> None:
    """Append a job event, with the job's id, its restart count and the time."""
    record = {"event": event, "job": job_id(), "restart": restart_count(), "time": time.time()} | values
    if element := os.environ.get("SLURM_ARRAY_TASK_ID"):
        record["element"] = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{element}"
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


def events_of(events: list[dict[str, Any]], job: str | None) -> list[dict[str, Any]]:
    """Those of one job, by its id as submit knows it: 12, or 12_3 for an element of an array."""
    return [each for each in events if job in (each.get("element"), each["job"])]


def job_id() -> str:
    """The id of the running job; each element of an array has its own."""
    return os.environ.get("SLURM_JOB_ID", "")


def start_token() -> str:
    """What START_TOKEN is for the running job's present start."""
    return f"job {job_id()}, start {restart_count()}"


def restart_count() -> int:
    """How often Slurm has requeued the running job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)
