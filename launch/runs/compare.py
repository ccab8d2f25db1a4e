"""`translution runs compare`: what differs between runs, and their curves side by side."""

from __future__ import annotations

from pathlib import Path

from launch.runs.find import Run, read_run
from parallel.errors import UserError
from trainer.config.run import load_config
from trainer.config.shown import difference
from trainer.reporting.table import Table
from trainer.run_directory.run_directory import RunDirectory

_POINTS = 10  # of a curve in the table
_SHARE = 0.1  # of the last loss in the moving average


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
    """(step, moving average of the training loss) of every logged step."""
    points: list[tuple[int, float]] = []
    for record in RunDirectory(run.path).read_metrics():
        if "loss" in record:
            before = points[-1][1] if points else record["loss"]
            points.append((record["step"], before + _SHARE * (record["loss"] - before)))
    return points


def plot_curves(paths: list[Path], file: Path) -> None:
    """Draw the curves into a picture file; raises UserError for an unknown format."""
    from matplotlib.figure import Figure  # here, because it takes long to import

    figure = Figure(figsize=(7, 4), dpi=120, layout="tight")
    axes = figure.subplots()
    for path in paths:
        steps, losses = zip(*(curve(_read(path)) or [(0, float("nan"))]), strict=True)
        axes.plot(steps, losses, label=path.name)
    axes.set(xlabel="step", ylabel="training loss, moving average")
    axes.legend(frameon=False)
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
    table = Table("training loss, moving average")
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
