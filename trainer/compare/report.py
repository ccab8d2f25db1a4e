"""The table of a comparison, as text, Markdown and CSV, and its plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from parallel.planner.units import size_text
from trainer.atomic_write import atomic_write
from trainer.compare.plot import plot
from trainer.config.study import Member
from trainer.data.source import Source
from trainer.metrics import spread
from trainer.reporting.table import Table

COSTS: dict[str, tuple[str, Callable[[list[float]], str]]] = {
    "flops_per_sample": ("FLOPs a sample", lambda each: size_text(round(fmean(each)), "")),
    "step_seconds": ("ms a step", lambda each: spread([1e3 * s for s in each], 0)),
    "peak_bytes": ("peak memory", lambda each: size_text(round(max(each)))),
}
"""Numbers of a result beside its evaluation: the title of their column, and how runs of one net are shown."""


class Row(NamedTuple):
    """A net of a comparison: its numbers by name, one for each run that has finished."""

    name: str
    numbers: dict[str, list[float]]


def comparison_rows(
    members: list[Member],
    sources: list[Source],
    results: list[dict[str, Any]],
    title: Callable[[Member], str],
) -> list[Row]:
    """The nets in the order of their study; metrics are named by the columns of the table."""
    rows: dict[str, dict[str, list[float]]] = {}
    for member, source, result in zip(members, sources, results, strict=True):
        numbers = rows.setdefault(title(member), {})
        found = {key: result.get(key) for key in ("parameters", *COSTS)}
        for name, metrics in result["evaluation"].items():
            found[source.evaluations[name]] = metrics[source.task.headline]
        for name, value in found.items():
            if value is not None:
                numbers.setdefault(name, []).append(value)
    return [Row(*each) for each in rows.items()]


def add_costs(table: Table, rows: list[Row]) -> None:
    """Add the columns of what the nets cost."""
    for row in rows:
        for key, (title, text) in COSTS.items():
            if key in row.numbers:
                table.put(row.name, title, text(row.numbers[key]))


def write_report(root: Path, rows: list[Row], title: str) -> None:
    """Write results.csv and results.png; results.md is the study's."""
    atomic_write(root / "results.csv", _csv(rows))
    picture = plot(rows, title)
    atomic_write(root / "results.png", lambda path: path.write_bytes(picture))


def _csv(rows: list[Row]) -> str:
    """A line for each net: mean and sample standard deviation of every number, empty where there is none."""
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["net", "runs", *(f"{name}{part}" for name in names for part in (" mean", " deviation"))])
    for row in rows:
        cells: list[Any] = [row.name, max(map(len, row.numbers.values()))]
        for each in (row.numbers.get(name, []) for name in names):
            cells += [fmean(each) if each else "", stdev(each) if len(each) > 1 else ""]
        writer.writerow(cells)
    return text.getvalue()
