"""Training the nets of a study one after another, and the table of results."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from parallel.mesh import Mesh
from parallel.processes import run_on_first_rank
from trainer.atomic_write import atomic_write
from trainer.config.run import NETS, RunConfig
from trainer.config.study import Member
from trainer.data.source import Source
from trainer.errors import Interrupted
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
        if run_on_first_rank(lambda run=run, config=member.config: _finished(run, config)):
            print(f"{heading}: already finished", flush=True)
            continue
        if stop.number:
            raise Interrupted(stop.number, 0)
        print(heading, flush=True)
        resume = run_on_first_rank(lambda run=run, config=member.config: _open(run, config))
        train_net(member.config, source, run, mesh, stop, resume)

    def finish() -> Table:
        results = [run.read_result() or {} for run in runs]
        table = result_table(setup.config, setup.members, setup.sources, results)
        root.ownership.check()
        _write_results(root.path, table, setup.members, results)
        return table

    return run_on_first_rank(finish)


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
    table = Table(f"{config.name}: {sources[0].task.title}, after {config.train.steps} steps{averaged}")
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


def _finished(run: RunDirectory, config: RunConfig) -> bool:
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


def _write_results(root: Path, table: Table, members: list[Member], results: list[dict[str, Any]]) -> None:
    """Write results.json (every number) and results.md (the table) into the study's directory."""
    rows = [
        {"values": member.values, "run": member.config.name} | result
        for member, result in zip(members, results, strict=True)
    ]
    atomic_write(root / "results.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    atomic_write(root / "results.md", table.markdown())
