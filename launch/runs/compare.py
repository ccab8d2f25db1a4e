"""`translution runs compare`: what differs between runs, and their curves side by side."""

from __future__ import annotations

from pathlib import Path

from launch.runs.find import Run, read_run
from parallel.errors import UserError
from trainer.config.run import load_config
from trainer.config.shown import difference
from trainer.pictures.curves import draw_curves, smooth
from trainer.reporting.table import Table
from trainer.run_directory.run_directory import RunDirectory

_POINTS = 10  # of a curve in the table


def compare_runs(paths: list[Path]) -> list[Table]:
    """Three tables: config keys that differ, training losses at some steps, best evaluations.

    Raises UserError for what is no run, and for a study.
    """
    runs = {str(path): _read(path) for path in paths}
    if len(runs) < 2:
        raise UserError("runs compare: needs two or more different runs")
    configs = {title: load_config(RunDirectory(run.path).config, []) for title, run in runs.items()}
    return [difference(configs), _curves(runs), _evaluations(runs)]


def curve(run: Run) -> list[tuple[int, float]]:
    """(step, smoothed training loss) of every logged step."""
    logged = [record for record in RunDirectory(run.path).read_metrics() if "loss" in record]
    losses = smooth([record["loss"] for record in logged])
    return [(record["step"], loss) for record, loss in zip(logged, losses, strict=True)]


def plot_curves(paths: list[Path], file: Path) -> None:
    """Draw losses and learning rates into a picture file; raises UserError for an unknown format, and where
    no run has logged a step."""
    from trainer.pictures.style import styled  # here, because Matplotlib takes long to import

    with styled():
        figure = draw_curves({str(path): path for path in paths})
        if figure is None:
            raise UserError(f"--plot {file}: none of the runs has logged a step")
        try:
            figure.savefig(file)
        except ValueError as error:
            raise UserError(f"--plot {file}: {str(error).splitlines()[0]}") from None


def _read(path: Path) -> Run:
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: not a run directory: it has no config.yaml")
    run = read_run(path)
    if any(key.startswith("study.") for key in run.config):
        raise UserError(f"{path}: is a study; name runs inside it, or see translution runs {path}")
    return run


def _curves(runs: dict[str, Run]) -> Table:
    table = Table("training loss, smoothed")
    curves = {title: dict(curve(run)) for title, run in runs.items()}
    last = max((max(points) for points in curves.values() if points), default=0)
    for place in range(1, _POINTS + 1):
        step = max(1, round(last * place / _POINTS))
        for title, points in curves.items():
            if step in points:
                table.put(f"step {step}", title, f"{points[step]:.4f}")
    return table


def _evaluations(runs: dict[str, Run]) -> Table:
    table = Table("best evaluations")
    for title, run in runs.items():
        for (dataset, metric), best in run.best.items():
            table.put(f"{dataset} {metric}", title, f"{best.value:.4g}")
    return table
