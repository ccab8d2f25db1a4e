"""From a command's words to a run: which config, which directory, one net or a study."""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from parallel.errors import UserError
from parallel.mesh import join_mesh, mesh_of
from parallel.processes import (
    join_processes,
    leave_processes,
    raise_if_any_failed,
    rank,
    run_on_first_rank,
    world_size,
)
from parallel.rank_failure import explain_rank_failures
from trainer.config.run import RunConfig, load_config
from trainer.data.build import build_source
from trainer.data.source import Source
from trainer.errors import Interrupted
from trainer.evaluation import evaluate
from trainer.reporting.table import Table
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory, new_run_path
from trainer.signals import StopRequest
from trainer.study import Member, study_members, study_table, train_study
from trainer.train import build_engine, check_net, pick_device, restore, train_net


def split_words(config: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """Tell a config file from a first override, for the file may be left out."""
    if config is not None and "=" in config and not Path(config).is_file():
        return None, [config, *overrides]
    return config, overrides


def train(
    config_path: str | None, overrides: list[str], resume: Path | None = None, requeued: bool = False
) -> Path:
    """Start a run, or go on with the one in `resume`, and print its table.

    With `resume` and no config the run's own is taken; overrides apply in both cases. With
    `requeued` the config's run_dir is gone on with when it holds a checkpoint, else begun anew:
    what a job needs that may be started several times over. Everything a person can get wrong is
    checked before training starts and raises UserError. Returns the run directory; raises
    Interrupted when a signal stopped the run.
    """
    prepared, failure = None, None
    try:
        prepared = _prepare(config_path, overrides, resume)
    except UserError as error:
        failure = error  # of this rank; the others, which it may not befall, are told
    device = prepared.device if prepared else torch.device("cpu")
    join_processes(device, group_of_one=bool(prepared and prepared.config.parallel.engine == "deepspeed"))
    try:
        with explain_rank_failures():
            raise_if_any_failed(failure)
            assert prepared is not None
            return _train(prepared.config, prepared.source, resume, requeued)
    finally:
        leave_processes()


class _Prepared(NamedTuple):
    config: RunConfig
    device: torch.device
    source: Source


def _prepare(config_path: str | None, overrides: list[str], resume: Path | None) -> _Prepared:
    """The part of train() that each rank does by itself: reading, and checking what can be checked."""
    if resume is not None:
        config = _config_of(resume, config_path, overrides)
    elif config_path is not None:
        config = load_config(config_path, overrides)
    else:
        raise UserError("which config? Name a file, as in configs/debug.yaml, or --resume RUN_DIR")
    device = pick_device(config)
    for each in [member.config for member in study_members(config, Path())] or [config]:
        check_net(each)
    source = build_source(config)
    data_ranks = mesh_of(config.parallel, world_size()).data
    source.train_batches(0, config.train.batch, config.train.accumulate, 0, data_ranks)  # may refuse
    return _Prepared(config, device, source)


def _train(config: RunConfig, source: Source, resume: Path | None, requeued: bool) -> Path:
    """The part of train() in which all ranks of the run take part."""
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the first rank speaks for all)
    mesh = join_mesh(config.parallel, _settings(config.model_dump(mode="json")))
    path = run_on_first_rank(lambda: resume or config.run_dir or new_run_path(config.name))
    run, members = RunDirectory(path), study_members(config, path)

    def prepare() -> bool:
        resumable = _resumable(run, config, members)
        if resume is None and not (requeued and resumable):
            run.create(config, again=requeued)
            return False
        if not resumable:
            what = "net of this study to resume" if config.study else "checkpoint to resume from"
            raise UserError(f"{run.path}: holds no {what}")
        return True

    resumed = run_on_first_rank(prepare)
    print(f"run directory: {path}", flush=True)
    with StopRequest() as stop:
        try:
            if config.study:
                run.fence.claim()
                run.save_config(config)
                train_study(config, run, members, stop, mesh).show()
            else:
                result = train_net(config, run, source, stop, resumed, mesh)
                _net_table(config, source, result["evaluation"]).show()
        except Interrupted as interrupted:
            print(f"{interrupted}; go on with: translution train --resume {path}", flush=True)
            raise
    return path


def evaluate_run(run_dir: Path, overrides: list[str]) -> None:
    """Evaluate the newest checkpoint of a run, or of every net of a study, and print the table."""
    config = _config_of(run_dir, None, overrides)
    if config.study:
        members = study_members(config, run_dir)
        sources = [build_source(member.config) for member in members]
        results = []
        for member, source in zip(members, sources, strict=True):
            engine = build_engine(member.config)
            restore(engine, member.run, member.config.model)
            measured = evaluate(engine, source, member.config.train.evaluate_batch)
            results.append({"evaluation": measured, "parameters": engine.parameters})
        study_table(config, members, sources, results).show()
        return
    engine = build_engine(config)
    restore(engine, RunDirectory(run_dir), config.model)
    source = build_source(config)
    measured = evaluate(engine, source, config.train.evaluate_batch)
    _net_table(config, source, measured).show()


def _config_of(run_dir: Path, config_path: str | None, overrides: list[str]) -> RunConfig:
    own = RunDirectory(run_dir).config
    if not own.is_file():
        raise UserError(f"{run_dir}: is no run directory, it has no {own.name}")
    return load_config(config_path or own, overrides)


def _settings(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Every value of a config as text, by its dotted key."""
    found: dict[str, str] = {}
    for key, value in values.items():
        inside = isinstance(value, dict)
        found |= _settings(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": str(value)}
    return found


def _resumable(run: RunDirectory, config: RunConfig, members: list[Member]) -> bool:
    if config.study:
        return any(member.run.config.exists() for member in members)
    return bool(checkpoints(run.checkpoints))


def _net_table(config: RunConfig, source: Source, evaluation: dict[str, dict[str, float]]) -> Table:
    table = Table(f"{config.name}: {source.task.title}, after {config.train.steps} steps")
    for name, measures in evaluation.items():
        table.put(config.name, source.evaluations[name], source.task.cell(measures))
    return table
