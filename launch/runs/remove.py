"""`translution runs remove`: deletes old runs, never one that is alive, nor the best if it is to be kept."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from launch.runs.find import FINISHED, NEW, STOPPED, Run
from launch.slurm.runs.states import alive_runs
from parallel.errors import UserError
from parallel.planner.units import size_text

_AGE = re.compile(r"(\d+)\s*([mhdw])")
_AGE_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Choice(NamedTuple):
    """Directories of runs and studies to delete, and why others stay."""

    remove: list[Path]
    kept: dict[Path, str]


def choose(runs: list[Run], others: list[Run], older_than: str | None, keep_best: bool) -> Choice:
    """Of these runs, those that may be removed: a study only as a whole, and only if none of its nets is
    alive, younger than `older_than`, the best of these runs, or one of the `others` alone. Raises UserError
    for an age that is none."""
    units: dict[Path, list[Run]] = {}
    for run in runs:
        units.setdefault(run.unit, []).append(run)
    youngest = time.time() - (_seconds(older_than) if older_than else 0)
    alive = _alive(list(units))
    best = dict[Path, str]()
    for run, why in _best_runs(runs) if keep_best else ():
        best.setdefault(run.unit, why)
    left_out = {run.unit for run in others if run.path not in {each.path for each in runs}}
    remove, kept = [], dict[Path, str]()
    for unit, members in units.items():
        if unit in alive or any(run.state not in (FINISHED, STOPPED, NEW) for run in members):
            kept[unit] = alive.get(unit, "is alive, or Slurm does not say")
        elif max(run.changed for run in members) > youngest:
            kept[unit] = f"is younger than {older_than}"
        elif unit in best:
            kept[unit] = best[unit]
        elif unit in left_out:
            kept[unit] = "has nets that the filter leaves out"
        else:
            remove.append(unit)
    return Choice(remove, kept)


def describe(choice: Choice) -> list[str]:
    """A line per directory."""
    lines = [f"keep    {unit}: {why}" for unit, why in choice.kept.items()]
    return lines + [f"remove  {unit}, {size_text(_bytes(unit))}" for unit in choice.remove]


def remove(units: list[Path]) -> None:
    """Delete the directories. Each loses its name first, so that one half deleted is no run."""
    for unit in units:
        hidden = unit.with_name(f".removed-{unit.name}-{time.time_ns()}")
        unit.rename(hidden)
        shutil.rmtree(hidden)


def _alive(units: list[Path]) -> dict[Path, str]:
    """Submitted runs with a job that waits or runs; all submitted ones where Slurm does not answer."""
    submitted = [unit for unit in units if (unit / "slurm.json").exists()]
    try:
        return {unit: f"its job {job} is alive" for unit, job in alive_runs(submitted).items()}
    except UserError as error:
        return dict.fromkeys(submitted, f"was submitted, and Slurm does not say ({error})")


def _best_runs(runs: list[Run]) -> list[tuple[Run, str]]:
    """The best run of every metric and evaluation set."""
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.best):
        best = min((run for run in runs if key in run.best), key=lambda run: run.best[key].cost)
        found.append((best, f"has the best {key[0]} {key[1]}, {best.best[key].value:.4g}"))
    return found


def _seconds(age: str) -> float:
    if match := _AGE.fullmatch(age.strip()):
        return int(match[1]) * _AGE_SECONDS[match[2]]
    raise UserError(f"--older-than {age}: expected an age, as in 30d, 12h or 2w")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
