"""Slurm's own commands, and what their answers mean. Nothing here needs the accounting database.

Standard library only.
"""

import re
import subprocess
from typing import NamedTuple

from parallel.errors import UserError

_SECONDS = 30
GONE = "UNKNOWN"
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
ALIVE = (*WAITING, "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


class QueueRow(NamedTuple):
    """One job as squeue has it; `left` is what remains of its time limit, `reason` why it waits."""

    state: str
    nodes: str
    left: str
    reason: str


def slurm(*words: str) -> str:
    """Run a command of Slurm's and return its output; raises UserError with its last line of error."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise UserError(f"{words[0]}: not found; is this a machine of a Slurm cluster?") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]}: Slurm's controller did not answer within {_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [
            f"exit code {done.returncode}"
        ]
        raise UserError(lines[-1].strip())
    return done.stdout


def queue() -> dict[str, QueueRow]:
    """The caller's waiting and running jobs: id (12 or 12_3) → row."""
    text = slurm("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%N|%L|%r")
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 4)
    return {job.strip(): QueueRow(*(part.strip() for part in rest)) for job, *rest in rows}


def last_state(job: str) -> str:
    """The state of a job that may have ended: from the controller, else the database, else UNKNOWN."""
    facts = job_facts(job)
    if "JobState" in facts:
        return facts["JobState"]
    try:
        text = slurm("sacct", "-o", "JobID,State", "--parsable2", "-j", job)
    except UserError:  # no database, or none that answers
        return GONE
    for line in text.splitlines()[1:]:
        name, _, state = line.partition("|")
        if name == job and state:
            return state.split()[0].split("|")[0]
    return GONE


def job_facts(job: str) -> dict[str, str]:
    """What the controller knows of a job, {} when it has forgotten it."""
    try:
        shown = slurm("scontrol", "--oneliner", "show", "job", job)
    except UserError:
        return {}
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def check_partition(partition: str | None, nodes: int, minutes: int) -> None:
    """Raise UserError when the partition is not there, or too small or too short for the job."""
    known: dict[str, dict[str, str]] = {}
    for line in slurm("scontrol", "--oneliner", "show", "partition").splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        known[facts.get("PartitionName", "")] = facts
    if partition is None:
        partition = next((name for name, facts in known.items() if facts.get("Default") == "YES"), None)
        if partition is None:
            raise UserError(f"this cluster has no default partition; give --partition: {', '.join(known)}")
    for name in partition.split(","):
        if name not in known:
            raise UserError(f"partition={name}: there is none; this cluster has {', '.join(known)}")
    facts = known[partition.split(",")[0]]
    total = facts.get("TotalNodes", "")
    if total.isdigit() and nodes > int(total):
        raise UserError(f"nodes={nodes}: partition {partition} has {total}")
    limit = facts.get("MaxTime", "UNLIMITED")
    if limit not in ("UNLIMITED", "INFINITE"):
        from launch.slurm.allocation import minutes as parsed

        if minutes > parsed(limit):
            raise UserError(f"time={minutes} min: partition {partition} allows {parsed(limit)} min ({limit})")


def node_timeout() -> float:
    """Seconds after which the controller gives up a node that does not answer."""
    try:
        found = re.search(r"SlurmdTimeout\s*=\s*(\d+)", slurm("scontrol", "show", "config"))
    except UserError:
        found = None
    return float(found[1]) if found else 300.0


def unresponsive(nodes: str) -> list[str]:
    """Those of a job's nodes that are down or do not answer the controller."""
    try:
        text = slurm("sinfo", "--noheader", "-N", f"--nodes={nodes}", "--format=%N|%T")
    except UserError:
        return []
    lost = set()
    for line in text.splitlines():
        name, _, state = line.strip().partition("|")
        if state.endswith("*") or re.match(r"down|fail|unknown|power|no_respond", state):
            lost.add(name)
    return sorted(lost)
