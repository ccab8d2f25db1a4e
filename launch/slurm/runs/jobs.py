"""`translution jobs` and `translution cancel`: list the submitted runs, end the jobs of one."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.slurm.queries import ALIVE, UNKNOWN, QueueRow, last_state, queue, slurm
from launch.slurm.runs.job_record import RECORD_FILE, SUBMITTED_CONFIG, read_record, restarts, write_record
from parallel.errors import UserError

_WATCH_SECONDS = 2.0
_TAIL_BYTES = 8192


class JobRow(NamedTuple):
    """A run in the table; `left` is what remains of the job's time limit."""

    job: str
    state: str
    nodes: str
    step: str
    loss: str
    restarts: int
    left: str
    run: Path


def job_rows(root: Path) -> list[JobRow]:
    """The runs in `root`, newest first. Raises UserError if Slurm does not answer."""
    found = [path.parent for path in root.glob(f"*/{RECORD_FILE}")]
    found.sort(key=lambda run: read_record(run).submitted, reverse=True)
    queued = queue()
    return [_row(run, queued) for run in found]


def show_jobs(root: Path, watch: bool) -> None:
    """Print the table; with `watch` refresh it until Ctrl-C or until all runs have ended."""
    console = Console()
    if not watch:
        console.print(_table(job_rows(root), root), soft_wrap=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = job_rows(root)
            live.update(_table(rows, root), refresh=True)
            if not any(row.state.split()[0] in ALIVE for row in rows):
                return
            time.sleep(_WATCH_SECONDS)


def cancel(run: Path) -> str:
    """Cancel the run's jobs, without requeue; returns a line to print. Raises UserError if none is alive."""
    record = read_record(run)
    jobs = [*record.jobs[-1:], *record.evaluation_jobs]
    alive = [job for job in jobs if last_state(job) in ALIVE]
    if not alive:
        state = last_state(record.job) if record.job else "not submitted"
        raise UserError(f"{run}: nothing to cancel: its job {record.job} is {state}")
    if record.job in alive:
        record.cancelled = True  # before the job ends, so that it is not requeued
        write_record(run, record)
    slurm("scancel", *alive)
    return f"cancelled job {', '.join(alive)}; to resume: translution resume {run}"


def _row(run: Path, queued: dict[str, QueueRow]) -> JobRow:
    record = read_record(run)
    job = record.job or ""
    state, nodes, left = UNKNOWN, "", ""
    if job in queued:
        state, nodes, left, reason = queued[job]
        if reason not in ("None", "") and state != "RUNNING":
            state = f"{state} ({reason})"
    elif job:
        state = last_state(job)
        if state == UNKNOWN and (run / "result.json").exists():
            state = "COMPLETED"
    if record.cancelled and state.split()[0] not in ALIVE:
        state = "CANCELLED"
    step, loss = _progress(run)
    return JobRow(job, state, nodes, step, loss, restarts(run), left, run)


def _progress(run: Path) -> tuple[str, str]:
    """`step/steps` and the last loss; for a study, those of the net logged last."""
    logged = [*run.glob("metrics.jsonl"), *run.glob("*/metrics.jsonl")]
    newest = max(logged, key=lambda path: path.stat().st_mtime, default=None)
    steps = _steps(run)
    for line in reversed(_tail(newest) if newest else []):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "loss" in record:
            return f"{record['step']}/{steps}", f"{record['loss']:.4f}"
    return f"0/{steps}", ""


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()


def _steps(run: Path) -> str:
    try:
        return str(yaml.safe_load((run / SUBMITTED_CONFIG).read_text())["train"]["steps"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return "?"


def _table(rows: list[JobRow], root: Path) -> Table:
    if not rows:
        raise UserError(f"{root}: contains no submitted runs")
    table = Table(box=None, pad_edge=False)
    for title in ("job", "state", "nodes", "step", "loss", "restarts", "left", "directory"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        shown = row.run.relative_to(Path.cwd()) if row.run.is_relative_to(Path.cwd()) else row.run
        table.add_row(*map(str, row[:-1]), str(shown))
    return table
