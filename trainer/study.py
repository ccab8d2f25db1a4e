"""Training the nets of a study one after another, and the table of results."""

import json
import re
from collections.abc import Callable
from statistics import fmean
from typing import Any

from parallel.mesh import Mesh
from parallel.processes import rank, run_on_first_rank
from trainer.atomic_write import atomic_write
from trainer.config.run import NETS, RunConfig
from trainer.config.study import Member
from trainer.data.source import Source
from trainer.errors import Interrupted
from trainer.reporting.loggers.tensorboard import write_hparams
from trainer.reporting.table import Table
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import Setup
from trainer.signals import StopRequest

SEED = "seed"  # the study key whose nets are averaged
TrainNet = Callable[[RunConfig, Source, RunDirectory, Mesh, StopRequest, bool], dict[str, Any]]


def train_study(
    setup: Setup, root: RunDirectory, mesh: Mesh, stop: StopRequest, train_net: TrainNet
) -> Table:
    """Train every net that has no result yet, with `trainer.train.train_net`; write results.json and
    results.md.

    Nets that have a checkpoint resume from it. Raises Interrupted when `stop` is requested.
    """
    root.ownership.claim()
    root.save_config(setup.config)
    runs = [RunDirectory(member.path(root.path)) for member in setup.members]
    for number, (member, source, run) in enumerate(zip(setup.members, setup.sources, runs, strict=True), 1):
        heading = f"net {number} of {len(runs)}: {member.config.name}"
        if run_on_first_rank(lambda run=run, config=member.config: is_finished(run, config)):
            print(f"{heading}: already finished", flush=True)
            continue
        if stop.number:
            raise Interrupted(stop.number, 0)
        print(heading, flush=True)
        resume = run_on_first_rank(lambda run=run, config=member.config: _open(run, config))
        result = train_net(member.config, source, run, mesh, stop, resume)
        if rank() == 0 and "tensorboard" in member.config.train.loggers:
            write_hparams(run.events, dict(zip(member.values, member.labels, strict=True)), result)

    return run_on_first_rank(lambda: write_results(root, setup.config, setup.members, setup.sources))


def write_results(
    root: RunDirectory, config: RunConfig, members: list[Member], sources: list[Source]
) -> Table:
    """Write results.json (every number) and results.md (the table) into the study's directory; of a study of
    named nets also results.csv and results.png. Nets that have not finished are left out of them."""
    read = [RunDirectory(member.path(root.path)).read_result() for member in members]
    left_out = [place for place, result in enumerate(read) if result is None]
    results = [result for result in read if result is not None]
    members = [member for place, member in enumerate(members) if place not in left_out]
    sources = [source for place, source in enumerate(sources) if place not in left_out]
    table = result_table(config, members, sources, results)
    if left_out:
        table.title += f"; {len(left_out)} of {len(read)} nets have not finished"
    root.ownership.check()
    rows = [
        {"values": member.values, "run": member.config.name} | result
        for member, result in zip(members, results, strict=True)
    ]
    if NETS in (config.study or {}) and rows:
        from trainer.compare.report import add_costs, comparison_rows, write_report  # Matplotlib

        shown = sources[0].shown_in_columns
        nets = comparison_rows(members, sources, results, lambda member: row_title(member, shown))
        add_costs(table, nets)
        write_report(root.path, nets, table.title)
    atomic_write(root.path / "results.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    atomic_write(root.path / "results.md", table.markdown())
    return table


def result_table(
    config: RunConfig, members: list[Member], sources: list[Source], results: list[dict[str, Any]]
) -> Table:
    """The evaluation results of a run: of one net, or of a study, whose rows also have parameters.

    Rows are combinations of the study's values; a value that `Source.shown_in_columns` names chooses the
    column instead. Nets that differ in their seed alone are one cell: mean ± deviation; with them the
    table also has the seconds that a net trained.
    """
    seeds = len((config.study or {}).get(SEED, []))
    averaged = f", mean ± deviation of {seeds} seeds" if seeds > 1 else ""
    if not sources:
        return Table(f"{config.name}: no net has finished")
    table = Table(f"{config.name}: {sources[0].task.title}, {_after(members)}{averaged}")
    cells: dict[tuple[str, str], list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for member, source, result in zip(members, sources, results, strict=True):
        row = row_title(member, source.shown_in_columns) or config.name
        if config.study:
            table.put(row, "parameters", f"{result['parameters']:,}")
        for name, metrics in result["evaluation"].items():
            cells.setdefault((row, source.evaluations[name]), []).append(metrics)
        rate = result.get(f"{source.unit}_per_second")
        if rate:  # seconds in the result are those since the last start
            seconds.setdefault(row, []).append(result["samples"] / rate)
    for (row, column), runs in cells.items():
        table.put(row, column, sources[0].task.cell(runs))
    if seeds:
        for row, each in seconds.items():
            table.put(row, "seconds", f"{fmean(each):.0f}")
    return table


def _after(members: list[Member]) -> str:
    steps = sorted({member.config.train.steps for member in members})
    return f"after {steps[0]} steps" if len(steps) == 1 else f"after {steps[0]} to {steps[-1]} steps"


def is_finished(run: RunDirectory, config: RunConfig) -> bool:
    """Whether a net has the result of its last step."""
    result = run.read_result()
    return result is not None and result["step"] >= config.train.steps


def _open(run: RunDirectory, config: RunConfig) -> bool:
    """Whether the net has a checkpoint to resume from; if not, (re)creates its run directory."""
    if checkpoints(run.checkpoints):
        return True
    run.create(config, again=True)
    return False


def row_title(member: Member, columns: tuple[str, ...]) -> str:
    """A net in the table: its study's values, but for the seed and those that choose one of the `columns`."""
    parts = []
    for key, label in zip(member.values, member.labels, strict=True):
        if key == SEED or key in columns:
            continue
        if key == NETS:
            parts.append(label)
            continue
        title, (_, *own) = member.title(key), re.split(r"-(?=\w+=)", label)
        parts.append(" ".join([title, *own]) if title else f"{key.split('.')[-1]}={label}")
    return ", ".join(parts)
