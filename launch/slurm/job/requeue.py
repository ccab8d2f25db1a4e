"""`python -m launch.slurm.job.requeue RUN CODE`: what the batch script asks when its ranks have ended.

Requeues the job when the run stopped for a signal or for the loss of a node, or crashed after it had
got on; leaves it when it has finished, was cancelled, met a user's mistake, or crashed where it began.
Standard library only, for it runs on the node itself in the seconds before a job's end.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

from launch.slurm.queries import job_facts, node_timeout, slurm, unresponsive
from launch.slurm.runs.job_record import job_id, note, read_facts, read_notes, restart_count
from parallel.errors import UserError

_NODE_LOSS_SECONDS = 45.0
"""How long to wait, after an end that nobody explains, for Slurm to see that a node is gone."""

_UNFINISHED = 75  # sysexits.h: a temporary failure


def why_again(run: Path, code: int, wait: float | None = None) -> str | None:
    """The reason to start the job again, None when there is none. `code` is srun's exit code."""
    if read_facts(run).cancelled:
        return None
    events = _events(run)
    if "refused" in events:
        return None
    if "stopped" in events:
        return f"stopped by signal {events['stopped']['signal']}"
    if code == 0:
        return None
    if "start" not in events and code == 128 + signal.SIGUSR2:
        return "warned before it had begun"
    begun = events["start"]["time"] if "start" in events else time.time()
    if _newest_checkpoint(run) > begun:
        return f"ended with code {code} after it had saved"
    if wait is None:
        wait = node_timeout() + 15 if "lost" in events else _NODE_LOSS_SECONDS
    end = time.monotonic() + wait
    nodes = job_facts(job_id()).get("NodeList", "")
    while True:
        if lost := unresponsive(nodes):
            return f"lost {', '.join(lost)}"
        if time.monotonic() >= end or ("," not in nodes and "[" not in nodes):
            return None
        time.sleep(1)


def requeue(run: Path, code: int) -> int:
    """Requeue the running job if there is reason to, at most `max_requeues` times.

    Returns the job's exit code: 0 only for a run that has finished, for others may depend on it.
    """
    if "finished" in _events(run):  # a signal that comes while its processes end changes nothing
        return 0
    reason = why_again(run, code)
    unfinished = code or _UNFINISHED
    if reason is None:
        return unfinished
    state = job_facts(job_id()).get("JobState", "RUNNING")
    if state != "RUNNING":  # cancelled, out of time, or being requeued by Slurm itself
        print(f"{reason}; the job is {state}, so it is left to Slurm", flush=True)
        return unfinished
    limit = read_facts(run).allocation["max_requeues"]
    if restart_count() >= limit:
        note(run, "exhausted")
        print(
            f"{reason}; not requeued: max_requeues={limit} are used up; translution resume {run}", flush=True
        )
        return unfinished
    note(run, "requeued", reason=reason)
    print(f"{reason}; requeued ({restart_count() + 1} of {limit})", flush=True)
    slurm("scontrol", "requeue", job_id())
    return unfinished


def _events(run: Path) -> dict[str, dict[str, Any]]:
    """What has been noted of this start of the job."""
    restart = restart_count()
    return {n["event"]: n for n in read_notes(run) if n["job"] == job_id() and n["restart"] == restart}


def _newest_checkpoint(run: Path) -> float:
    """When the newest checkpoint of the run, or of a study's nets in it, was written."""
    found = [*run.glob("checkpoints/*"), *run.glob("*/checkpoints/*")]
    return max((path.stat().st_mtime for path in found if not path.name.startswith(".")), default=0.0)


if __name__ == "__main__":
    try:
        sys.exit(requeue(Path(sys.argv[1]), int(sys.argv[2])))
    except UserError as error:
        sys.exit(f"error: {error}")
