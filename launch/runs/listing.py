"""`translution runs`: the table of all runs below a folder, chosen by their config and sorted."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.runs.find import FINISHED, Run, find_runs, smaller_is_better
from launch.slurm.runs.states import SlurmView
from parallel.errors import UserError
from trainer.reporting.table import Table

_COLUMNS: dict[str, Callable[[Run], Any]] = {
    "name": lambda run: run.path.name,
    "state": lambda run: run.state,
    "step": lambda run: -run.step,
    "loss": lambda run: run.loss,
    "best": lambda run: run.headline and run.headline.cost,
    "parameters": lambda run: run.parameters,
    "device-hours": lambda run: run.device_hours,
    "started": lambda run: -run.started if run.started else None,
}
"""What runs are sorted by: the best, the newest, the furthest first."""


def list_runs(folder: Path, filters: list[str], sort: str) -> list[Run]:
    """The runs below a folder that pass all filters, sorted; raises UserError where there is none.

    filters   KEY=PATTERN of a config key, state, name or tag; PATTERN may have * and ?
    sort      a column, a metric (the best first), or a config key
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    runs = with_slurm_states(find_runs(folder))
    if not runs:
        raise UserError(f"{folder}: contains no run")
    chosen = [run for run in runs if all(_passes(run, each) for each in _parsed(filters, runs))]
    if not chosen:
        raise UserError(f"{folder}: none of {len(runs)} runs passes --filter {' --filter '.join(filters)}")
    key = _sort_key(sort, runs)
    return sorted(chosen, key=lambda run: (key(run) is None, key(run), str(run.path)))


def table_of(runs: list[Run], folder: Path) -> Table:
    """A row per run."""
    table = Table(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} in {folder}")
    for run in runs:
        name = str(run.path.relative_to(folder)) if run.path != folder else folder.name
        best = run.headline
        cells = {
            "state": run.state,
            "step": f"{run.step}/{'?' if run.steps is None else run.steps}",
            "loss": "" if run.loss is None else f"{run.loss:.4f}",
            "best": "" if best is None else f"{best.metric} {best.value:.4g} ({best.dataset})",
            "parameters": "" if run.parameters is None else f"{run.parameters:,}",
            "device-hours": f"{run.device_hours:.3g}",
            "started": "" if run.started is None else f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}",
        }
        if any(each.tags for each in runs):
            cells["tags"] = ", ".join(run.tags)
        for column, cell in cells.items():
            table.put(name, column, cell or "–")
    return table


def as_json(runs: list[Run]) -> str:
    """A list of objects."""
    return json.dumps(
        [
            run._asdict()
            | {"path": str(run.path), "unit": str(run.unit)}
            | {"best": [best._asdict() for best in run.best.values()]}
            for run in runs
        ],
        indent=2,
    )


def with_slurm_states(runs: list[Run]) -> list[Run]:
    """Submitted runs that have not finished, with Slurm's state in place of what their files say, where
    Slurm answers."""
    asked = sorted({run.unit for run in runs if run.submitted and run.state != FINISHED})
    if not asked:
        return runs
    try:
        states = SlurmView().look(asked)
    except UserError:
        return runs
    return [
        run._replace(state=states[run.unit].state.lower())
        if run.unit in states and run.state != FINISHED
        else run
        for run in runs
    ]


def _parsed(filters: list[str], runs: list[Run]) -> list[tuple[str, str]]:
    parsed = []
    known = {key for run in runs for key in run.config} | {"state", "name", "tag"}
    for each in filters:
        key, equals, pattern = each.partition("=")
        if not equals:
            raise UserError(f"--filter {each}: expected KEY=VALUE, as in model.mixer.kind=translution")
        if key not in known:
            raise UserError(f"--filter {each}: no run has a config key {key}; state, name and tag are others")
        parsed.append((key, pattern))
    return parsed


def _passes(run: Run, chosen: tuple[str, str]) -> bool:
    key, pattern = chosen
    own = {"state": [run.state], "name": [run.path.name], "tag": list(run.tags)}.get(
        key, [run.config[key]] if key in run.config else []
    )
    return any(fnmatch.fnmatchcase(value, pattern) or _equal(value, pattern) for value in own)


def _equal(value: str, other: str) -> bool:
    """As numbers: 0.0015 is 1.5e-3."""
    try:
        return float(value) == float(other)
    except ValueError:
        return False


def _sort_key(sort: str, runs: list[Run]) -> Callable[[Run], Any]:
    if sort in _COLUMNS:
        return _COLUMNS[sort]
    metrics = {metric for run in runs for _, metric in run.best}
    if sort in metrics:
        sign = 1 if smaller_is_better(sort) else -1
        return lambda run: min(
            (sign * best.value for (_, metric), best in run.best.items() if metric == sort), default=None
        )
    if any(sort in run.config for run in runs):
        return lambda run: _number_or_text(run.config[sort]) if sort in run.config else None
    raise UserError(
        f"--sort {sort}: one of {', '.join([*_COLUMNS, *sorted(metrics - set(_COLUMNS))])}, or a config key"
    )


def _number_or_text(value: str) -> tuple[bool, float, str]:
    """Numbers before texts."""
    try:
        return (False, float(value), "")
    except ValueError:
        return (True, 0.0, value)
