"""`translution jobs`: one row for each submitted run, from Slurm's queue and the run directories."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.slurm.runs.job_record import FACTS, SUBMITTED, read_facts, restarts
from launch.slurm.queries import ALIVE, GONE, QueueRow, last_state, queue
from parallel.errors import UserError

_WATCH_SECONDS = 2.0
_TAIL_BYTES = 8192


class JobRow(NamedTuple):
    """What is shown of one run; `left` is what remains of the job's time limit."""

    job: str
    state: str
    nodes: str
    step: str
    loss: str
    restarts: int
    left: str
    run: Path


def job_rows(root: Path) -> list[JobRow]:
    """The runs in `root`, the newest first. Raises UserError when Slurm does not answer."""
    found = [path.parent for path in root.glob(f"*/{FACTS}")]
    found.sort(key=lambda run: read_facts(run).submitted, reverse=True)
    waiting = queue()
    return [_row(run, waiting) for run in found]


def show_jobs(root: Path, watch: bool) -> None:
    """Print the table; with `watch` again and again until Ctrl-C, or until every run has ended."""
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


def _row(run: Path, waiting: dict[str, QueueRow]) -> JobRow:
    facts = read_facts(run)
    job = facts.job or ""
    state, nodes, left = GONE, "", ""
    if job in waiting:
        queued = waiting[job]
        state, nodes, left = queued.state, queued.nodes, queued.left
        if queued.reason not in ("None", "") and state != "RUNNING":
            state = f"{state} ({queued.reason})"
    elif job:
        state = last_state(job)
        if state == GONE and (run / "result.json").exists():
            state = "COMPLETED"
    if facts.cancelled and state not in ALIVE:
        state = "CANCELLED"
    step, loss = _progress(run)
    return JobRow(job, state, nodes, step, loss, restarts(run), left, run)


def _progress(run: Path) -> tuple[str, str]:
    """`step/steps` and the last loss; of a study the net that was written last."""
    written = [*run.glob("metrics.jsonl"), *run.glob("*/metrics.jsonl")]
    newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
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
        return str(yaml.safe_load((run / SUBMITTED).read_text())["train"]["steps"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return "?"


def _table(rows: list[JobRow], root: Path) -> Table:
    if not rows:
        raise UserError(f"{root}: no run was submitted from here")
    table = Table(box=None, pad_edge=False)
    for title in ("job", "state", "nodes", "step", "loss", "restarts", "left", "directory"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        shown = row.run.relative_to(Path.cwd()) if row.run.is_relative_to(Path.cwd()) else row.run
        table.add_row(*map(str, row[:-1]), str(shown))
    return table
