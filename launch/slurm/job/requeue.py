"""`python -m launch.slurm.job.requeue RUN CODE`: the batch script's last step, after all ranks have ended.

Requeues the job if the run was stopped by a signal, lost a node or a rank, hung, or crashed after saving a
checkpoint. Does not if it finished, was cancelled, failed for a user's mistake, or failed in this program
before its first checkpoint.
Imports nothing heavy: it runs on the node in the seconds before the job ends.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

from launch.slurm.job.notify import notify
from launch.slurm.queries import OVER, job_fields, node_timeout, slurm, unresponsive
from launch.slurm.runs.failures import failure_cause, rank_logs
from launch.slurm.runs.job_record import (
    job_id,
    log_event,
    read_events,
    read_record,
    restart_count,
    start_token,
)
from parallel.errors import UserError
from trainer.faults.fault_log import FAULTS_FILE, read_faults

_NODE_LOSS_SECONDS = 45.0
"""How long to wait after an unexplained end for Slurm to notice that a node is lost."""

_EARLY_SECONDS = 75.0  # by how much Slurm may send its warning early

_KILLED = (128 + signal.SIGKILL, 128 + signal.SIGABRT)
"""Exit codes of a rank that was killed, or aborted by its collective library for want of a peer."""

_UNFINISHED = 75  # sysexits.h: a temporary failure


def requeue_reason(run: Path, code: int, wait: float | None = None) -> str | None:
    """The reason to requeue the job, or None. `code` is srun's exit code."""
    if read_record(run).cancelled:
        return None
    events = _events_of_this_start(run)
    if "refused" in events:
        return None
    if "stopped" in events:
        return _signal_reason(run, events["stopped"]["signal"])
    if code == 0:
        return None
    if "start" not in events and code == 2:  # the check of the hosts has found a mistake
        return None
    if "start" not in events and code in (128 + signal.SIGUSR1, 128 + signal.SIGUSR2):
        return "stopped by a signal before training started"
    started = events["start"]["time"] if "start" in events else time.time()
    if _newest_checkpoint_time(run) > started:
        return f"ended with code {code} after saving a checkpoint"
    nets = [run, *(path.parent for path in run.glob(f"*/{FAULTS_FILE}"))]  # those of a study have their own
    faults = {fault["fault"] for net in nets for fault in read_faults(net, start_token())}
    if "hang" in faults:
        return "hung"
    own_failure = bool({"crash", "out of memory"} & faults)  # this program's, which another start would meet
    lost = "lost rank" in faults or code in _KILLED
    if wait is None:
        wait = node_timeout() + 15 if "lost rank" in faults else _NODE_LOSS_SECONDS
    end = time.monotonic() + wait
    nodes = job_fields(job_id()).get("NodeList", "")
    while True:
        if away := unresponsive(nodes):
            return f"lost {', '.join(away)}"
        if time.monotonic() >= end or ("," not in nodes and "[" not in nodes):
            return "lost a rank" if lost and not own_failure else None
        time.sleep(1)


def requeue(run: Path, code: int) -> int:
    """Requeue the running job if there is a reason to, at most `max_requeues` times.

    Returns the job's exit code: 0 only if the run has finished, for other jobs may depend on it.
    """
    if "finished" in _events_of_this_start(run):  # a signal during shutdown changes nothing
        notify(run, "finished")
        return 0
    reason = requeue_reason(run, code)
    unfinished = code or _UNFINISHED
    if reason is None:
        if read_record(run).cancelled:
            print(f"cancelled; to resume: translution resume {run}", flush=True)
            notify(run, f"cancelled; to resume: translution resume {run}")
            return unfinished
        cause = _cause(run, code)
        log_event(run, "failed", cause=cause)
        notify(run, f"failed: {cause}")
        return unfinished
    state = job_fields(job_id()).get("JobState", "RUNNING")
    if state != "RUNNING":  # cancelled, out of time, or already requeued by Slurm
        how = f"; to resume: translution resume {run}" if state in OVER else ""
        line = f"not requeued: Slurm reports the job as {state}{how}"
        print(f"{reason}; {line}", flush=True)
        if how:
            notify(run, line)
        return unfinished
    limit = read_record(run).allocation["max_requeues"]
    if restart_count() >= limit:
        log_event(run, "exhausted")
        print(
            f"{reason}; not requeued: max_requeues={limit} reached; to resume: translution resume {run}",
            flush=True,
        )
        notify(run, f"not requeued: max_requeues={limit} reached; to resume: translution resume {run}")
        return unfinished
    log_event(run, "requeued", reason=reason)
    print(f"{reason}; requeued ({restart_count() + 1} of {limit})", flush=True)
    slurm("scontrol", "requeue", job_id())
    return unfinished


def _signal_reason(run: Path, number: int) -> str:
    """Why Slurm sent the signal: it warns with the same one before a time limit and before a preemption, and
    ends the other ranks when one has died."""
    fields, allocation = job_fields(job_id()), read_record(run).allocation
    preempted = fields.get("PreemptTime", "None") not in ("None", "(null)", "Unknown")
    if number in (signal.SIGUSR1, signal.SIGUSR2):
        try:
            left = time.mktime(time.strptime(fields.get("EndTime", ""), "%Y-%m-%dT%H:%M:%S")) - time.time()
        except ValueError:
            left = float("inf")
        # Slurm may signal up to a minute early; a preempted job has its end moved to now.
        if not preempted and left <= allocation.get("signal_delay", 0) + _EARLY_SECONDS:
            return "time limit"
    if preempted:
        return "preempted"
    if number == signal.SIGTERM and (told := _output_says(run)):
        return told
    return f"stopped by {signal.Signals(number).name}"


def _cause(run: Path, code: int) -> str:
    """What the ranks' output says of the failure, or the exit code."""
    return _output_says(run) or f"ended with code {code}"


def _output_says(run: Path) -> str | None:
    record = read_record(run)
    names = [each for each in read_events(run) if each["job"] == job_id()]
    job = names[-1].get("element", job_id()) if names else job_id()
    found = failure_cause(rank_logs(run, record, job))
    return found[1] if found else None


def _events_of_this_start(run: Path) -> dict[str, dict[str, Any]]:
    """Events of the running job since its last restart, by name."""
    here = (job_id(), restart_count())
    return {each["event"]: each for each in read_events(run) if (each["job"], each["restart"]) == here}


def _newest_checkpoint_time(run: Path) -> float:
    """When the newest checkpoint of the run, or of a study's nets, was written; 0 if there is none."""
    found = [*run.glob("checkpoints/*"), *run.glob("*/checkpoints/*")]
    return max((path.stat().st_mtime for path in found if not path.name.startswith(".")), default=0.0)


if __name__ == "__main__":
    try:
        sys.exit(requeue(Path(sys.argv[1]), int(sys.argv[2])))
    except UserError as error:
        sys.exit(f"error: {error}")
