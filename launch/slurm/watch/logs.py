"""`translution logs RUN`: print the output of a run's jobs, and follow it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.slurm.queries import ALIVE, job_fields, last_state
from launch.slurm.runs.failures import failure_cause, rank_logs
from launch.slurm.runs.job_record import JobRecord, events_of, read_events, read_record
from launch.slurm.watch.log_lines import readable
from parallel.errors import UserError

_POLL_SECONDS = 0.5
_ASK_SECONDS = (5.0, 60.0)  # between two questions to Slurm: at first, and at most


class _Follower:
    """Prints what is new in log files, whole lines only."""

    def __init__(self, raw: bool) -> None:
        self._raw = raw
        self._read: dict[Path, int] = {}

    def show(self, path: Path, prefix: str, keep: int | None = None, rest: bool = False) -> None:
        """Print new lines, at the first time the last `keep`; with `rest` also an unfinished line."""
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            content = file.read()
        end = len(content) if rest else content.rfind(b"\n") + 1
        lines = content[:end].decode(errors="replace").splitlines()
        shown = lines if self._raw else list(readable(lines))
        if keep is not None and path not in self._read:
            shown = shown[-keep:] if keep else []
        self._read[path] = self._read.get(path, 0) + end
        sys.stdout.writelines(f"{prefix}{line}\n" for line in shown)

    def has_shown(self, paths: list[Path]) -> bool:
        """Whether any of these files had something to print."""
        return any(self._read.get(path) for path in paths)


def show_logs(
    runs: list[Path], rank: int | None, follow: bool = False, lines: int | None = None, raw: bool = False
) -> None:
    """Print the output of one rank, or with None of all, each line after its rank; oldest job first. Of
    several runs each line comes after its run's name.

    Ends with the error of another rank where that is what ended a run. With `follow` print on until all
    jobs have ended; `lines` is how many of the newest job's to begin with; `raw` shows lines of srun and
    submitit too. Raises UserError where a run has no output.
    """
    follower = _Follower(raw)
    over = {run: _job_is_over(run, read_record(run)) for run in runs}
    announced: set[Path] = set()
    while True:
        ended = not follow or all([over[run]() for run in runs])
        for run in runs:
            record = read_record(run)  # a resumed run has another job
            name = f"{run.name}: " if len(runs) > 1 else ""
            for path, number in _shown(run, record, rank, newest=lines is not None):
                follower.show(path, name + (f"[rank {number}] " if rank is None else ""), lines, rest=ended)
            if not ended and run not in announced and not _paths(run, record, rank):
                print(f"{name}job {record.job}: waiting for its output", file=sys.stderr)
                announced.add(run)
        sys.stdout.flush()
        if ended:
            break
        time.sleep(_POLL_SECONDS)
    for run in runs:
        record = read_record(run)
        if not follower.has_shown([path for path, _ in _shown(run, record, rank, lines is not None)]):
            raise UserError(_no_output(run, record, rank))
        if rank is not None and record.job and "finished" not in _last_event(run):
            found = failure_cause(rank_logs(run, record, record.job))
            if found and found[0] != rank:
                print(f"rank {found[0]} says why: {found[1]}", flush=True)


def _shown(run: Path, record: JobRecord, rank: int | None, newest: bool) -> list[tuple[Path, int]]:
    """The logs to print and their ranks; with `newest` of the newest job that has any."""
    found = _paths(run, record, rank)
    return [(path, number) for job, path, number in found if not newest or job == found[-1][0]]


def _paths(run: Path, record: JobRecord, rank: int | None) -> list[tuple[str, Path, int]]:
    """Job, file and rank of each log, oldest job first."""
    found = [
        (job, path, number) for job in record.jobs for number, path in rank_logs(run, record, job).items()
    ]
    return [each for each in found if rank is None or each[2] == rank]


def _last_event(run: Path) -> str:
    events = read_events(run)
    return events[-1]["event"] if events else ""


def _job_is_over(run: Path, record: JobRecord) -> Callable[[], bool]:
    """Tells whether the run's job has ended: asks Slurm when the run says so, else ever more rarely."""
    asked, wait, said = -_ASK_SECONDS[1], _ASK_SECONDS[0], ""

    def over() -> bool:
        nonlocal asked, wait, said
        if not record.job:
            return True
        events = events_of(read_events(run), record.job)
        says = events[-1]["event"] if events else ""
        ends = says != said and says in ("finished", "failed", "refused", "exhausted", "stopped")
        if not ends and time.monotonic() - asked < wait:
            return False
        wait = _ASK_SECONDS[0] if says != said else min(1.5 * wait, _ASK_SECONDS[1])
        asked, said = time.monotonic(), says
        return last_state(record.job) not in ALIVE

    return over


def _no_output(run: Path, record: JobRecord, rank: int | None) -> str:
    if not record.job:
        return f"{run}: has not been submitted yet"
    if _paths(run, record, 0):
        return f"{run}: rank {rank} has no output"
    state = last_state(record.job)
    if state in ALIVE:
        return f"{run}: job {record.job} is {state} and has printed nothing"
    node = job_fields(record.job).get("NodeList", "its node")
    return (
        f"{run}: job {record.job} is {state} and has no output; "
        f"is {record.logs} on a file system that {node} shares?"
    )
