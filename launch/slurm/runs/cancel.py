"""`translution cancel`: end the jobs of runs."""

from pathlib import Path

from launch.slurm.queries import slurm
from launch.slurm.runs.job_record import read_record, write_record
from launch.slurm.runs.states import SlurmView, alive_jobs
from parallel.errors import UserError


def cancel(runs: list[Path]) -> list[str]:
    """Cancel the jobs of runs, without requeue; returns a line per run. Raises UserError if none is alive."""
    alive = alive_jobs(runs)
    if not alive:
        state = SlurmView().look(runs[:1])[runs[0]].state
        raise UserError(f"{runs[0]}: nothing to cancel: its job {read_record(runs[0]).job} is {state}")
    lines = []
    for run in runs:
        record = read_record(run)
        if run not in alive:
            lines.append(f"{run.name}: nothing to cancel")
            continue
        if record.job in alive[run]:
            record.cancelled = True  # before the job ends, so that it is not requeued
            write_record(run, record)
        lines.append(f"cancelled job {', '.join(alive[run])}; to resume: translution resume {run}")
    slurm("scancel", *(job for jobs in alive.values() for job in jobs))
    return lines
