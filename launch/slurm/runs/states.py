"""The states of runs: one look at Slurm for all, and their own events where it has forgotten."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from launch.slurm.queries import ALIVE, UNKNOWN, WAITING, QueueRow, accounted, queue
from launch.slurm.runs.failures import failure_cause, rank_logs
from launch.slurm.runs.job_record import RECORD_FILE, JobRecord, events_of, read_events, read_record
from parallel.errors import UserError

DAMAGED = "DAMAGED"
UNSENT = "UNSENT"
ENDED = "ENDED"
"""States beside Slurm's: slurm.json is damaged; sbatch was never reached; over, and nothing says how."""

_REASONS = {
    "Priority": "behind jobs of higher priority",
    "Resources": "waits for free nodes",
    "Dependency": "waits for another job",
    "BeginTime": "waits to start again",
    "JobArrayTaskLimit": "waits for others of its sweep",
    "TimeLimit": "time limit",
    "NodeFail": "lost a node",
    "OutOfMemory": "out of memory",
    "ReqNodeNotAvail": "its nodes are down or reserved",
    "PartitionTimeLimit": "asks for more time than its partition allows",
    "DependencyNeverSatisfied": "the run it waits for failed",
}
_SAYS_LITTLE = ("", "None", "NonZeroExitCode", "RaisedSignal:9(Killed)", "(null)")


class RunState(NamedTuple):
    """`left` is what remains of the job's time limit, `why` the reason of waiting or failing."""

    state: str
    nodes: str = ""
    left: str = ""
    why: str = ""


class SlurmView:
    """What Slurm says of runs. A look costs one `squeue`, and one `sacct` if a job is unknown to both the
    controller and its run; the ends of jobs are kept and not asked for again."""

    def __init__(self) -> None:
        self._ends: dict[str, str] = {}

    def look(self, runs: list[Path]) -> dict[Path, RunState]:
        """The state of every run. Raises UserError if Slurm's controller does not answer."""
        records: dict[Path, JobRecord] = {}
        states: dict[Path, RunState] = {}
        for run in runs:
            try:
                records[run] = read_record(run)
            except UserError as error:
                states[run] = RunState(DAMAGED, why=str(error).removeprefix(f"{run}/"))
        queued = queue() if records else {}
        events = {run: events_of(read_events(run), record.job) for run, record in records.items()}
        jobs = [
            record.job for run, record in records.items() if record.job and not _says_its_end(events[run])
        ]
        found = accounted([job for job in jobs if job not in queued and job not in self._ends])
        self._ends |= {job: state for job, state in found.items() if state not in ALIVE}
        for run, record in records.items():
            end = (found | self._ends).get(record.job or "", UNKNOWN)
            states[run] = _state(run, record, events[run], queued.get(record.job or ""), end)
        return states


def submitted_runs(root: Path) -> list[Path]:
    """The runs in `root` that were submitted to Slurm, in no order."""
    return [path.parent for path in root.glob(f"*/{RECORD_FILE}")]


def alive_runs(runs: list[Path]) -> dict[Path, str]:
    """Those of `runs` that have a job waiting or running, training's or an evaluation's, and its id.

    A run whose slurm.json is damaged counts as alive, with the id "?". Raises UserError if Slurm's
    controller does not answer. What deletes runs asks here first.
    """
    submitted = [run for run in runs if (run / RECORD_FILE).exists()]
    damaged = []
    for run in submitted:
        try:
            read_record(run)
        except UserError:
            damaged.append(run)
    alive = alive_jobs([run for run in submitted if run not in damaged])
    return {run: "?" for run in damaged} | {run: jobs[0] for run, jobs in alive.items()}


def alive_jobs(runs: list[Path]) -> dict[Path, list[str]]:
    """The jobs of each run that wait or run, for those that have one. Raises UserError."""
    jobs: dict[str, Path] = {}
    for run in runs:
        record = read_record(run)
        jobs |= {job: run for job in (*record.jobs, *record.evaluation_jobs)}
    queued = queue() if jobs else {}
    states = {job: row.state for job, row in queued.items()}
    states |= accounted([job for job in jobs if job not in queued])
    alive: dict[Path, list[str]] = {}
    for job, run in jobs.items():
        if states.get(job) in ALIVE:
            alive.setdefault(run, []).append(job)
    return alive


def refuse_alive(run: Path) -> None:
    """Raise UserError if a Slurm job may be training `run`, so that nothing else takes the run over."""
    if not (run / RECORD_FILE).exists():
        return
    job = read_record(run).job
    try:
        alive = alive_runs([run])
    except UserError as error:
        events = events_of(read_events(run), job)
        if job is None or _says_its_end(events):
            return
        raise UserError(
            f"{run}: its job {job} may still be alive, and Slurm does not say ({error}); "
            f"resume where Slurm answers, or delete {run / RECORD_FILE} if the job is over"
        ) from None
    if run in alive:
        raise UserError(
            f"{run}: its job {alive[run]} is alive; cancel it first (translution cancel {run}), "
            f"or let it train on (translution logs {run} --follow)"
        )


def _state(
    run: Path, record: JobRecord, events: list[dict[str, Any]], row: QueueRow | None, end: str
) -> RunState:
    if not record.job:
        minutes = (time.time() - record.submitted) / 60
        return RunState(UNSENT, why=f"sbatch was not reached {minutes:.0f} min ago")
    state, nodes, left, reason = row or QueueRow(_own_state(run, events, end), "", "", "")
    if state in WAITING:
        return RunState(state, nodes, left, _REASONS.get(reason, reason if reason != "None" else ""))
    if state in ALIVE:
        return RunState(state, nodes, left)
    if record.cancelled and state != "COMPLETED":
        state = "CANCELLED"
    if state == "COMPLETED" or (state == "CANCELLED" and record.cancelled):
        return RunState(state)
    why = _why(run, record, state, events, reason)
    return RunState(state, why=why.removeprefix(f"{run.absolute()}: "))


def _says_its_end(events: list[dict[str, Any]]) -> bool:
    """Whether the events of a job's last start include its end."""
    return bool({"finished", "refused", "exhausted", "failed"} & set(_last_start(events)))


def _last_start(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The events since the last start, by name."""
    starts = [number for number, each in enumerate(events) if each["event"] == "start"]
    return {each["event"]: each for each in events[starts[-1] if starts else 0 :]}


def _own_state(run: Path, events: list[dict[str, Any]], end: str) -> str:
    """The state of a job that the controller has forgotten."""
    last = _last_start(events)
    if "finished" in last:
        return "COMPLETED"
    if {"refused", "exhausted", "failed"} & set(last):
        return "FAILED"
    if end != UNKNOWN:
        return end
    return "COMPLETED" if (run / "result.json").exists() else ENDED


def _why(run: Path, record: JobRecord, state: str, events: list[dict[str, Any]], reason: str) -> str:
    last = _last_start(events)
    if "exhausted" in last:
        return f"max_requeues={record.allocation.get('max_requeues')} used up"
    if "failed" in last:
        return last["failed"].get("cause") or ""
    if found := failure_cause(rank_logs(run, record, record.job or "")):
        return found[1]
    if reason not in _SAYS_LITTLE:
        return _REASONS.get(reason, reason)
    if state not in (ENDED, "FAILED"):
        return ""
    if "start" in last:
        return f"ended without a word on {last['start'].get('nodes', 'its nodes')}"
    return "ended before training started"
