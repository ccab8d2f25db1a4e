"""`translution jobs`: the submitted runs with what Slurm and their own files say of them."""

import fnmatch
import json
import re
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launch.slurm.queries import ALIVE, OVER
from launch.slurm.runs.job_record import RECORD_FILE, read_record
from launch.slurm.runs.states import DAMAGED, ENDED, UNSENT, RunState, SlurmView, submitted_runs
from launch.slurm.watch.job_table import JobRow, table_lines
from launch.slurm.watch.progress import run_progress
from parallel.errors import UserError

_STATES = (*ALIVE, *OVER, "PREEMPTED", DAMAGED, ENDED, UNSENT)
_REFRESH_SECONDS = 2.0
_LOOKS = (4.0, 60.0)
"""Seconds between two looks at Slurm while watching: at first, and at most, when no state changes."""
_AGE = re.compile(r"(\d+)\s*([mhdw])")
_AGE_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


class Filter(NamedTuple):
    """Which runs to show: in one of these states, of this name, submitted since this time."""

    states: frozenset[str] = frozenset()
    name: str = ""
    since: float = 0.0

    def keeps(self, row: JobRow) -> bool:
        return (not self.states or row.state.state in self.states) and self.keeps_unasked(
            row.run, row.submitted
        )

    def keeps_unasked(self, run: Path, submitted: float) -> bool:
        """Whether a run passes what can be told without asking for its state."""
        pattern = self.name if re.search(r"[*?\[]", self.name) else f"*{self.name}*"
        return submitted >= self.since and fnmatch.fnmatchcase(run.name, pattern)


def read_filter(state: str | None, name: str | None, since: str | None) -> Filter:
    """From the command's options; raises UserError for a state or a time that does not exist."""
    states = frozenset(part.strip().upper() for part in (state or "").split(",") if part.strip())
    if unknown := sorted(states - set(_STATES)):
        raise UserError(f"--state {unknown[0]}: no such state; valid: {', '.join(_STATES).lower()}")
    return Filter(states, name or "", _time(since) if since else 0.0)


def job_rows(root: Path, chosen: Filter | None = None, view: SlurmView | None = None) -> list[JobRow]:
    """The runs in `root`, newest first. Raises UserError if Slurm does not answer."""
    chosen = chosen or Filter()
    submitted = {run: _submitted(run) for run in submitted_runs(root)}
    runs = [run for run in submitted if chosen.keeps_unasked(run, submitted[run])]
    runs.sort(key=lambda run: (-submitted[run], run.name))
    states = (view or SlurmView()).look(runs)
    rows = [_row(run, states[run], submitted[run]) for run in runs]
    return [row for row in rows if chosen.keeps(row)]


def show_jobs(
    root: Path, chosen: Filter, watch: bool = False, wide: bool = False, as_json: bool = False
) -> None:
    """Print the table, cut to the terminal's width unless `wide` or piped, or a list of JSON objects.

    With `watch` refresh it until Ctrl-C or until all runs have ended. Raises UserError where no run is.
    """
    if watch:
        _watch(root, chosen, wide)
        return
    rows = job_rows(root, chosen)
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    print("\n".join(table_lines(_some(rows, root, chosen), _width(wide))))


def _watch(root: Path, chosen: Filter, wide: bool) -> None:
    """Read the runs' files often, ask Slurm ever more rarely while no state changes."""
    view, wait = SlurmView(), _LOOKS[0]
    rows = _some(job_rows(root, chosen, view), root, chosen)
    looked = time.monotonic()
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows.sort(key=lambda row: row.state.state not in ALIVE)  # what is over may be cut off below
            lines = table_lines(rows, _width(wide))
            if console.is_terminal and len(lines) >= console.height:
                more = len(lines) - console.height + 2
                lines = [*lines[: console.height - 2], f"… {more} more: translution jobs"]
            live.update(Text("\n".join(lines), no_wrap=True, overflow="ignore"), refresh=True)
            if not any(row.state.state in ALIVE for row in rows):
                return
            time.sleep(_REFRESH_SECONDS)
            if time.monotonic() - looked < wait:
                rows = [_row(row.run, row.state, row.submitted) for row in rows]
                continue
            before = {row.run: row.state.state for row in rows}
            rows = _some(job_rows(root, chosen, view), root, chosen)
            looked = time.monotonic()
            changed = before != {row.run: row.state.state for row in rows}
            wait = _LOOKS[0] if changed else min(1.5 * wait, _LOOKS[1])


def _row(run: Path, state: RunState, submitted: float) -> JobRow:
    if state.state == DAMAGED:
        return JobRow("?", run, state, None, submitted)
    record = read_record(run)
    return JobRow(
        record.job or "", run, state, run_progress(run, record, state.state == "RUNNING"), submitted
    )


def _submitted(run: Path) -> float:
    try:
        return read_record(run).submitted
    except UserError:
        path = run / RECORD_FILE
        return path.stat().st_mtime if path.exists() else 0.0


def _some(rows: list[JobRow], root: Path, chosen: Filter) -> list[JobRow]:
    if not rows:
        raise UserError(
            f"{root}: contains no submitted runs"
            + (" of that state, name and time" if chosen != Filter() else "")
        )
    return rows


def _width(wide: bool) -> int | None:
    return None if wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns


def _time(text: str) -> float:
    """Seconds since the epoch of a date, or of an age as in 30m, 12h, 2d, 1w."""
    if age := _AGE.fullmatch(text.strip()):
        return time.time() - int(age[1]) * _AGE_SECONDS[age[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise UserError(
            f"--since {text}: expected an age as in 12h or 2d, or a date as in 2026-01-31"
        ) from None
