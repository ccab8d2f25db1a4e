"""The table of a sweep: the best value of every metric, and the run that has it."""

import json
from pathlib import Path
from typing import Any

from launch.slurm.runs.job_record import read_record
from launch.slurm.runs.states import submitted_runs
from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.reporting.table import Table
from trainer.run_directory.run_directory import RunDirectory

_FILE = "results.md"
_SMALLER_IS_BETTER = ("loss", "perplexity", "bits", "error")
_BEST = " *"


def sweep_table(runs: list[Path]) -> Table:
    """A row per run that has a result and a column per metric of each evaluation set; the best value of a
    column is marked. Studies have a row per net. Raises UserError where no run has finished."""
    rows: dict[str, dict[str, float]] = {}
    for run in sorted(runs, key=lambda run: read_record(run).submitted):
        label = read_record(run).label or run.name
        for name, result in _results(run):
            rows[f"{label} {name}".strip()] = _metrics(result)
    if not rows:
        raise UserError(
            f"{runs[0].parent}: none of these {len(runs)} runs has finished; see translution jobs"
        )
    unfinished = len(runs) - sum(bool(_results(run)) for run in runs)
    table = Table(f"{len(rows)} results, the best of each column marked with{_BEST}")
    if unfinished:
        table.title += f"; {unfinished} of {len(runs)} runs have not finished"
    for column in dict.fromkeys(column for values in rows.values() for column in values):
        values = {row: metrics[column] for row, metrics in rows.items() if column in metrics}
        smaller = column.split()[-1] in _SMALLER_IS_BETTER
        best = (min if smaller else max)(values.values())
        for row in rows:
            if row in values:
                table.put(row, column, f"{values[row]:.4g}{_BEST if values[row] == best else '  '}")
    return table


def show_if_complete(sweep: Path, root: Path) -> None:
    """Print the sweep's table and write it into its folder if this was its last run to finish; where the
    sweep is a comparison, also write its results."""
    runs = [run for run in submitted_runs(root) if _sweep(run) == str(sweep)]
    if runs and all(_results(run) for run in runs):
        table = sweep_table(runs)
        table.show()
        atomic_write(sweep / _FILE, table.markdown())
        if RunDirectory(root).config.exists():
            from launch.compare import write_comparison

            write_comparison(root)


def _sweep(run: Path) -> str:
    try:
        return read_record(run).sweep
    except UserError:  # damaged: no reason for another run to fail
        return ""


def _results(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """The results of a finished run, or of each net of a finished study, after its name."""
    study = run / "results.json"
    if study.exists():
        return [(each["run"], each) for each in json.loads(study.read_text())]
    result = RunDirectory(run).read_result()
    return [("", result)] if result else []


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name} {metric}": value
        for name, metrics in result["evaluation"].items()
        for metric, value in metrics.items()
    }
