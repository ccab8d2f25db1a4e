"""Evaluation: of an engine in training, of a finished run, and of the checkpoints of a running one."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.engine.interface import Engine
from parallel.errors import UserError
from parallel.mesh import join_mesh
from parallel.processes import (
    abandon_processes,
    join_processes,
    leave_processes,
    raise_if_any_failed,
    rank,
    world_size,
)
from parallel.rank_failure import explain_rank_failures
from trainer.config.run import RunConfig, load_config
from trainer.config.study import run_members
from trainer.data.feed import on_device
from trainer.data.source import Source
from trainer.faults.watchdog import Watchdog
from trainer.reporting.table import Table
from trainer.run_directory.awaited import EVALUATIONS, read_evaluations
from trainer.run_directory.checkpoints import checkpoint_step, checkpoints
from trainer.run_directory.restoring import load_into, restore
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_evaluator, pick_device, read_run_config
from trainer.signals import StopRequest
from trainer.study import result_table


def evaluate(
    engine: Engine,
    source: Source,
    batch: int,
    stop: StopRequest | None = None,
    watchdog: Watchdog | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of every evaluation set of `source`: set → metric → value, the same on every rank.

    Every sample counts once. Each set waits for the device once, at its end. When `stop` is requested
    meanwhile, of any rank, sets that are not finished are missing.
    """
    mesh = engine.mesh
    evaluation: dict[str, dict[str, float]] = {}
    for name in source.evaluations:
        total = None
        batches = source.evaluation_batches(name, batch, mesh.data_rank, mesh.data)
        for one in on_device(batches, source, engine.device):
            if watchdog:
                watchdog.at("evaluating", engine.steps_done)
            if stop and stop.agree():
                return evaluation
            sums = engine.evaluate(one, source.task.sums)
            total = sums if total is None else total + sums
        assert isinstance(total, torch.Tensor), f"evaluation set {name} is empty"
        if mesh.data > 1:
            dist.all_reduce(total, group=mesh.group("data"))
        evaluation[name] = source.task.metrics(total.tolist())
    return evaluation


def evaluate_run(run_dir: Path, overrides: list[str]) -> None:
    """Evaluate the newest checkpoint of a run, or of every net of a study, and print the table.

    Several processes share the net over offset and tensor as the config's `parallel` section says; each
    reads its own part of the weights, and no moments. A single process holds the whole net. Raises UserError.
    """
    config, failure = None, None
    try:
        config = read_run_config(run_dir, overrides)
        device = pick_device(config)
    except UserError as error:
        failure, device = error, torch.device("cpu")
    join_processes(device, timeout=config.parallel.timeout if config else 600)
    try:
        with explain_rank_failures():
            raise_if_any_failed(failure)
            assert config is not None
            table = _evaluate_nets(config, run_dir)
    except (UserError, SystemExit):  # on all ranks alike
        leave_processes()
        raise
    except BaseException:
        abandon_processes()
        raise
    leave_processes()
    if rank() == 0:
        table.show()


def _evaluate_nets(config: RunConfig, run_dir: Path) -> Table:
    members = run_members(config)
    mesh = join_mesh(config.parallel) if world_size() > 1 else None
    sources = [member.config.build_source() for member in members]
    results = []
    for member, source in zip(members, sources, strict=True):
        engine = build_evaluator(member.config, mesh)
        restore(engine, RunDirectory(member.path(run_dir)), member.config, resumes=False)
        evaluation = evaluate(engine, source, member.config.train.evaluate_batch)
        results.append({"evaluation": evaluation, "parameters": engine.parameters})
    return result_table(config, members, sources, results)


def evaluate_new_checkpoints(run_dir: Path, every: int) -> list[int]:
    """Evaluate the checkpoints of a run that another process trains, where `every` divides the step.

    Adds a line per checkpoint to evaluations.jsonl in the run directory and skips those that have one;
    returns the steps. A checkpoint that the run deletes meanwhile is skipped.
    """
    run = RunDirectory(run_dir)
    records = run_dir / EVALUATIONS
    done = [record["step"] for record in read_evaluations(run_dir)]
    new = []
    for path in checkpoints(run.checkpoints):
        step = checkpoint_step(path)
        if step % every or step in done or not run.config.exists():
            continue
        config = load_config(run.config, [])
        engine = build_evaluator(config)
        try:
            load_into(engine, path, config.model, False, config.train.verify_checkpoints)
        except ValueError:
            if path.exists():
                raise
            continue
        evaluation = evaluate(engine, config.build_source(), config.train.evaluate_batch)
        with records.open("a") as file:
            file.write(json.dumps({"step": step, "evaluation": evaluation}) + "\n")
        print(f"step {step}: {evaluation}", flush=True)
        new.append(step)
    return new
