"""Evaluation: of an engine in training, of a finished run, and of the checkpoints of a running one."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.engine.interface import Engine
from parallel.mesh import Mesh
from trainer.config.run import load_config
from trainer.config.study import run_members
from trainer.data.source import Batch, Source
from trainer.faults.watchdog import Watchdog
from trainer.run_directory.checkpoints import checkpoints, load_into
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_engine, read_run_config, restore
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

    Every sample counts once. With one data rank, each set waits for the device once, at its end. When
    `stop` is requested meanwhile, sets that are not finished are missing.
    """
    mesh = engine.mesh
    evaluation: dict[str, dict[str, float]] = {}
    for name in source.evaluations:
        total = None
        batches = source.evaluation_batches(name, batch, mesh.data_rank, mesh.data)
        for one, counts in _same_number_on_all_ranks(batches, mesh, engine.device):
            if watchdog:
                watchdog.at("evaluating", engine.steps_done)
            if stop and stop.number:
                return evaluation
            sums = engine.evaluate(source.on_device(one.to(engine.device)), source.task.sums)
            sums = sums if counts else torch.zeros_like(sums)
            total = sums if total is None else total + sums
        assert isinstance(total, torch.Tensor), f"evaluation set {name} is empty"
        if mesh.data > 1:
            dist.all_reduce(total, group=mesh.group("data"))
        evaluation[name] = source.task.metrics(total.tolist())
    return evaluation


def _same_number_on_all_ranks(
    batches: Iterator[Batch], mesh: Mesh, device: torch.device
) -> Iterator[tuple[Batch, bool]]:
    """The batches, and whether they count: a data rank that has run out repeats its last one until the
    others are done, for a forward pass may be collective (ZeRO-3)."""
    last, ended = None, False
    while True:
        batch = None if ended else next(batches, None)
        ended = batch is None
        if mesh.data > 1:
            going = torch.tensor(float(not ended), device=device)
            dist.all_reduce(going, dist.ReduceOp.MAX, group=mesh.group("data"))
            if not going.item():
                return
        elif ended:
            return
        last = last if batch is None else batch
        assert last is not None, "a data rank has no evaluation sample"
        yield last, not ended


def evaluate_run(run_dir: Path, overrides: list[str]) -> None:
    """Evaluate the newest checkpoint of a run, or of every net of a study, and print the table."""
    config = read_run_config(run_dir, overrides)
    members = run_members(config)
    sources = [member.config.build_source() for member in members]
    results = []
    for member, source in zip(members, sources, strict=True):
        engine = build_engine(member.config)
        restore(engine, RunDirectory(member.path(run_dir)), member.config.model)
        evaluation = evaluate(engine, source, member.config.train.evaluate_batch)
        results.append({"evaluation": evaluation, "parameters": engine.parameters})
    result_table(config, members, sources, results).show()


def evaluate_new_checkpoints(run_dir: Path, every: int) -> list[int]:
    """Evaluate the checkpoints of a run that another process trains, where `every` divides the step.

    Adds a line per checkpoint to evaluations.jsonl in the run directory and skips those that have one;
    returns the steps. A checkpoint that the run deletes meanwhile is skipped.
    """
    run = RunDirectory(run_dir)
    records = run_dir / "evaluations.jsonl"
    done = [json.loads(line)["step"] for line in records.read_text().splitlines()] if records.exists() else []
    new = []
    for path in checkpoints(run.checkpoints):
        step = int(path.stem.split("-")[-1])
        if step % every or step in done or not run.config.exists():
            continue
        config = load_config(run.config, [])
        engine = build_engine(config)
        try:
            load_into(engine, path, config.model)
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
