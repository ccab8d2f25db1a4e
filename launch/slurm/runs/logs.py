"""`translution logs RUN`: what a rank of a run's jobs printed, also while it prints."""

import sys
import time
from pathlib import Path

from launch.slurm.runs.job_record import SlurmFacts, read_facts
from launch.slurm.queries import ALIVE, job_facts, last_state
from parallel.errors import UserError

_POLL_SECONDS = 0.5


def log_paths(run: Path, rank: int) -> list[Path]:
    """The files that hold the output of `rank`, one per job, the oldest job's first."""
    facts = read_facts(run)
    folders = {run.absolute() / "slurm", Path(facts.logs or run).absolute()}
    names = [folder / f"{job}_{rank}_log.out" for job in facts.jobs for folder in folders]
    return [path for path in names if path.exists()]


def show_logs(run: Path, rank: int, follow: bool) -> None:
    """Print them; with `follow` until the run's job has ended. Raises UserError when there is nothing."""
    facts = read_facts(run)
    shown: dict[Path, int] = {}
    quiet = False
    while True:
        ended = not follow or not facts.job or last_state(facts.job) not in ALIVE
        for path in log_paths(run, rank):
            with path.open(errors="replace") as file:
                file.seek(shown.get(path, 0))
                sys.stdout.write(file.read())
                shown[path] = file.tell()
        sys.stdout.flush()
        if ended:
            break
        if not shown and not quiet:
            print(
                f"job {facts.job} is {last_state(facts.job or '')}; waiting for its output", file=sys.stderr
            )
            quiet = True
        time.sleep(_POLL_SECONDS)
    if not shown:
        raise UserError(_nothing(run, facts, rank))


def _nothing(run: Path, facts: SlurmFacts, rank: int) -> str:
    if not facts.job:
        return f"{run}: was not handed to Slurm yet"
    if log_paths(run, 0):
        return f"{run}: there is no output of rank {rank}"
    state = last_state(facts.job)
    if state in ALIVE:
        return f"{run}: job {facts.job} is {state} and has printed nothing"
    node = job_facts(facts.job).get("NodeList", "its node")
    return (
        f"{run}: job {facts.job} is {state} and left no output; "
        f"is {facts.logs} on a file system that {node} shares?"
    )
