"""`translution logs RUN`: print the output of one rank of a run's jobs, and follow it."""

import sys
import time
from pathlib import Path

from launch.slurm.queries import ALIVE, job_fields, last_state
from launch.slurm.runs.job_record import JobRecord, read_record
from parallel.errors import UserError

_POLL_SECONDS = 0.5


def log_paths(run: Path, rank: int) -> list[Path]:
    """The log files of `rank`, one per job, oldest job first."""
    record = read_record(run)
    folders = {run.absolute() / "slurm", Path(record.logs or run).absolute()}
    names = [folder / f"{job}_{rank}_log.out" for job in record.jobs for folder in folders]
    return [path for path in names if path.exists()]


def show_logs(run: Path, rank: int, follow: bool) -> None:
    """Print the logs; with `follow` until the run's job has ended. Raises UserError if there are none."""
    record = read_record(run)
    shown: dict[Path, int] = {}
    announced = False
    while True:
        ended = not follow or not record.job or last_state(record.job) not in ALIVE
        for path in log_paths(run, rank):
            with path.open(errors="replace") as file:
                file.seek(shown.get(path, 0))
                sys.stdout.write(file.read())
                shown[path] = file.tell()
        sys.stdout.flush()
        if ended:
            break
        if not shown and not announced:
            state = last_state(record.job or "")
            print(f"job {record.job} is {state}; waiting for its output", file=sys.stderr)
            announced = True
        time.sleep(_POLL_SECONDS)
    if not shown:
        raise UserError(_no_output(run, record, rank))


def _no_output(run: Path, record: JobRecord, rank: int) -> str:
    if not record.job:
        return f"{run}: has not been submitted yet"
    if log_paths(run, 0):
        return f"{run}: rank {rank} has no output"
    state = last_state(record.job)
    if state in ALIVE:
        return f"{run}: job {record.job} is {state} and has printed nothing"
    node = job_fields(record.job).get("NodeList", "its node")
    return (
        f"{run}: job {record.job} is {state} and has no output; "
        f"is {record.logs} on a file system that {node} shares?"
    )
