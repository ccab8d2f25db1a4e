"""What is known of a run's jobs: `slurm.json`, written at submission, and `lives.jsonl`, by the jobs.

Standard library only: the batch script asks these in the moment a job ends.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parallel.errors import UserError

FACTS = "slurm.json"
SUBMITTED = "submitted.yaml"


@dataclass
class SlurmFacts:
    """One run's submissions. `jobs` are Slurm's ids, the newest last; `logs` holds their output; jobs
    begin in `folder`, where the run was submitted first, and containers see `data` too."""

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


def read_facts(run: Path) -> SlurmFacts:
    """Raises UserError when `run` was not submitted to Slurm."""
    try:
        return SlurmFacts(**json.loads((run / FACTS).read_text()))
    except FileNotFoundError:
        raise UserError(f"{run}: was not submitted to Slurm, it has no {FACTS}") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{run / FACTS}: is damaged: {error}") from None


def write_facts(run: Path, facts: SlurmFacts) -> None:
    """Replace slurm.json as a whole."""
    temporary = run / f".{FACTS}.{os.getpid()}.new"
    temporary.write_text(json.dumps(asdict(facts), indent=2) + "\n")
    temporary.replace(run / FACTS)


def claim_run(run: Path, facts: SlurmFacts) -> bool:
    """Make `run` with its slurm.json; False when another submission has done so before."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        with (run / FACTS).open("x") as file:
            json.dump(asdict(facts), file, indent=2)
    except FileExistsError:
        return False
    return True


def note(run: Path, event: str, **more: Any) -> None:
    """Add what befell the running job to lives.jsonl: an event, with job, start and time."""
    record = {"event": event, "job": job_id(), "restart": restart_count(), "time": time.time()} | more
    with (run / "lives.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_notes(run: Path) -> list[dict[str, Any]]:
    """All whole records of lives.jsonl, oldest first."""
    path = run / "lives.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def restarts(run: Path) -> int:
    """How often the run was started again, over all its jobs."""
    return max(0, sum(record["event"] == "start" for record in read_notes(run)) - 1)


def job_id() -> str:
    """The id by which Slurm's commands know the running job; an array's element has one of its own."""
    return os.environ.get("SLURM_JOB_ID", "")


def restart_count() -> int:
    """How often Slurm has requeued the running job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)
