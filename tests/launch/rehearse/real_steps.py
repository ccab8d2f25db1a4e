"""Real steps of small nets in real processes, measured: what a rehearsal of them must say."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from models.mixers.measured_cost import flop_counter
from parallel.engine.build import build_engine
from parallel.mesh import forget_mesh, join_mesh
from parallel.processes import join_processes
from parallel.rehearsal.collectives import recorded_collectives
from parallel.rehearsal.memory import Allocations
from parallel.rehearsal.recorder import Recorder
from parallel.traffic_counter import around_collectives
from trainer.config.run import RunConfig
from trainer.train import train_step

MARK = "second step"


class Measured(NamedTuple):
    """A rank's second step: peak bytes by the allocator's events, collectives, FLOPs; numbers held."""

    peak: int
    collectives: list[tuple[str, str, str, int]]
    flops: int
    held: int


def measure(configs: list[RunConfig]) -> list[Measured]:
    """Work for one process of several."""
    deepspeed = any(config.parallel.engine == "deepspeed" for config in configs)
    join_processes(torch.device("cpu"), group_of_one=deepspeed)
    os.environ.setdefault("KINETO_LOG_LEVEL", "10")
    return [_measure(config) for config in configs]


def _measure(config: RunConfig) -> Measured:
    gc.collect()  # of the case before
    mesh = join_mesh(config.parallel)
    source = config.build_source()
    train = config.train
    with (
        around_collectives(mesh, _finish),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded,
    ):
        engine: Any = build_engine(
            config.model,
            train,
            config.parallel,
            mesh,
            torch.device("cpu"),
            precision=config.precision,
            batch=train.batch,
            accumulate=train.accumulate,
        )
        batches = source.train_batches(0, train.batch, train.accumulate, mesh.data_rank, mesh.data)
        batch = source.on_device(next(batches), training=True)
        train_step(engine, [batch] * train.accumulate)
        with recorded_collectives(mesh, Recorder(Allocations(), None)) as log, record_function(MARK):
            train_step(engine, [batch] * train.accumulate)
        collectives = [each.same for each in log]
    peak = _peak_after_mark(recorded)
    with flop_counter() as counter:
        train_step(engine, [batch] * train.accumulate)
    held = sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters())
    forget_mesh()
    return Measured(peak, collectives, counter.get_total_flops(), held)


def _finish(axis: str, operation: str, tensors: list[torch.Tensor], call: Callable[[], Any]) -> Any:
    """Waits for gloo's thread to let go of the tensors: the profiler does not see what that thread frees."""
    work = call()
    if work is not None:
        work.wait()
        time.sleep(0.002)
    return work


def _peak_after_mark(recorded: Any) -> int:
    events = recorded.profiler.kineto_results.events()
    begin = next(e.start_ns() for e in events if e.name() == MARK)
    changes = sorted(
        ((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"), key=lambda c: c[0]
    )
    live = peak = 0
    for when, change in changes:
        live += change
        if when >= begin:
            peak = max(peak, live)
    return peak
