"""`translution cancel RUN`."""

from pathlib import Path

from launch.slurm.runs.job_record import read_facts, write_facts
from launch.slurm.queries import ALIVE, last_state, slurm
from parallel.errors import UserError


def cancel(run: Path) -> str:
    """End the run's jobs and note that it was meant; raises UserError when there is none to end.

    Returns the line to print.
    """
    facts = read_facts(run)
    jobs = [*facts.jobs[-1:], *facts.evaluation_jobs]
    alive = [job for job in jobs if last_state(job) in ALIVE]
    if not alive:
        state = last_state(facts.job) if facts.job else "not submitted"
        raise UserError(f"{run}: there is nothing to cancel, its job {facts.job} is {state}")
    facts.cancelled = True  # first, so that the job's end is not taken for a reason to start again
    write_facts(run, facts)
    slurm("scancel", *alive)
    return f"cancelled job {', '.join(alive)}; go on with it by: translution resume {run}"
