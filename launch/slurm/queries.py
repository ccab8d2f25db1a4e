"""Ask Slurm about jobs, nodes and partitions, without its accounting database where possible.

Standard library only.
"""

import re
import subprocess
from typing import NamedTuple

from parallel.errors import UserError

_SECONDS = 30
UNKNOWN = "UNKNOWN"
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
ALIVE = (*WAITING, "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


class QueueRow(NamedTuple):
    """A job in squeue; `left` is what remains of its time limit, `reason` why it is pending."""

    state: str
    nodes: str
    left: str
    reason: str


def slurm(*command: str) -> str:
    """Run one of Slurm's commands and return its output; raises UserError with its last line of stderr."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; is this a machine of a Slurm cluster?") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: Slurm's controller did not answer within {_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [
            f"exit code {done.returncode}"
        ]
        raise UserError(lines[-1].strip())
    return done.stdout


def queue() -> dict[str, QueueRow]:
    """The caller's jobs that the controller knows, ended ones too: id (12 or 12_3) → row. One `squeue`."""
    text = slurm("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%L|%r")
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 4)
    return {job.strip(): QueueRow(*(part.strip() for part in rest)) for job, *rest in rows}


def accounted(jobs: list[str]) -> dict[str, str]:
    """The states of jobs by the accounting database, in one `sacct`; {} where there is none."""
    if not jobs:
        return {}
    try:
        text = slurm("sacct", "-X", "-n", "--parsable2", "-o", "JobID,State", "-j", ",".join(jobs))
    except UserError:
        return {}
    rows = [line.split("|")[:2] for line in text.splitlines() if "|" in line]
    return {name: state.split()[0] for name, state in rows if name in jobs and state.strip()}


def last_state(job: str) -> str:
    """A job's state, also after its end: from the controller, else the database, else UNKNOWN."""
    fields = job_fields(job)
    if "JobState" in fields:
        return fields["JobState"]
    return accounted([job]).get(job, UNKNOWN)


def job_fields(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`, {} if the controller has forgotten the job."""
    try:
        return _fields(slurm("scontrol", "--oneliner", "show", "job", job))
    except UserError:
        return {}


def node_timeout() -> float:
    """Seconds after which the controller marks a node that does not answer as down."""
    try:
        found = re.search(r"SlurmdTimeout\s*=\s*(\d+)", slurm("scontrol", "show", "config"))
    except UserError:
        found = None
    return float(found[1]) if found else 300.0


def unresponsive(nodes: str) -> list[str]:
    """Those of `nodes`, a list as Slurm writes it, that are down or do not answer the controller."""
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


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", line))
