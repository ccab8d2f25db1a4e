"""The table of `translution jobs`: as many columns as the terminal has room for, all of them in a pipe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from launch.slurm.runs.states import RunState
from launch.slurm.watch.progress import RunProgress

_GAP = 2
_LEAST_WHY = 10
_LEAST_NAME = 12


class JobRow(NamedTuple):
    """A run in the table. `job` is its newest; `progress` is missing where slurm.json is damaged."""

    job: str
    run: Path
    state: RunState
    progress: RunProgress | None = None
    submitted: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        figures = self.progress._asdict() if self.progress else {}
        return {"job": self.job, "directory": str(self.run), "submitted": self.submitted} | (
            self.state._asdict() | figures
        )


_COLUMNS: dict[str, Callable[[JobRow, RunProgress], str]] = {
    "job": lambda row, _: row.job,
    "state": lambda row, _: row.state.state,
    "step": lambda _, figures: f"{figures.step}/{'?' if figures.steps is None else figures.steps}",
    "loss": lambda _, figures: "" if figures.loss is None else f"{figures.loss:.4f}",
    "to end": lambda _, figures: duration(figures.seconds_left),
    "limit": lambda row, _: row.state.left,
    "samples/s": lambda _, figures: _rate(figures.samples_per_second),
    "restarts": lambda _, figures: str(figures.restarts),
    "device-h": lambda _, figures: f"{figures.device_hours:,.{2 if figures.device_hours < 10 else 0}f}",
    "nodes": lambda row, _: row.state.nodes,
    "run": lambda row, _: row.run.name,
    "why": lambda row, _: row.state.why,
}
"""In the order in which they are shown. `limit` is what remains of the job's time limit."""

_ALWAYS = ("job", "state", "step", "run")
_WORTH = ("why", "to end", "loss", "limit", "samples/s", "restarts", "device-h", "nodes")
"""The other columns; they give way from the end."""
_NO_FIGURES = RunProgress(0, None, None, None, None, 0.0, 0)


def table_lines(rows: list[JobRow], width: int | None) -> list[str]:
    """The table's lines, the titles first. With `width`, columns of little worth are left out to fit, and
    names and reasons cut; ids, states and steps never. Without, nothing is."""
    cells = {title: [_cell(title, row) for row in rows] for title in _COLUMNS}
    widths = {title: max(map(len, [title, *column])) for title, column in cells.items()}
    shown = [title for title in _COLUMNS if title != "why" or any(cells["why"])]
    if width is None:  # for awk and the like, no cell is empty
        cells = {title: [cell or "-" for cell in column] for title, column in cells.items()}
    else:
        shown = _fitting(shown, widths, width)
    lines = []
    for number in range(-1, len(rows)):
        line = [(title if number < 0 else cells[title][number]) for title in shown]
        cut = [
            _cut(text, widths[title]).ljust(widths[title]) for text, title in zip(line, shown, strict=True)
        ]
        lines.append((" " * _GAP).join(cut).rstrip())
    return lines


def duration(seconds: float | None) -> str:
    """45s, 12m, 3h05, 2d04h; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def _fitting(titles: list[str], widths: dict[str, int], width: int) -> list[str]:
    """The titles that fit; sets the widths of `run` and `why` to what is left for them."""

    def total(chosen: list[str], least_why: bool) -> int:
        parts = [min(widths[t], _LEAST_WHY) if least_why and t == "why" else widths[t] for t in chosen]
        return sum(parts) + _GAP * (len(chosen) - 1)

    chosen: list[str] = list(_ALWAYS)
    for title in _WORTH:
        if title in titles and total([*chosen, title], True) <= width:
            chosen.append(title)
    rest = width - total([t for t in chosen if t != "why"], False)
    if "why" in chosen:
        widths["why"] = min(widths["why"], rest - _GAP)
    elif rest < 0:
        widths["run"] = max(widths["run"] + rest, _LEAST_NAME)
    return [title for title in titles if title in chosen]


def _cell(title: str, row: JobRow) -> str:
    if row.progress is None and title in ("step", "restarts", "device-h"):
        return ""
    return " ".join(_COLUMNS[title](row, row.progress or _NO_FIGURES).split())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
