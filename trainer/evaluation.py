"""Evaluation: every sample of a set once, one wait for the device at the end."""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from parallel.engine.torch_engine import Engine
from parallel.mesh import Mesh
from trainer.data.source import Batch, Source
from trainer.signals import StopRequest


def evaluate(
    engine: Engine, source: Source, batch: int, stop: StopRequest | None = None
) -> dict[str, dict[str, float]]:
    """The measures of every evaluation set of `source`: set → measure → value, the same on every rank.

    When `stop` is requested meanwhile, the sets not yet whole are missing.
    """
    mesh = engine.mesh
    measured: dict[str, dict[str, float]] = {}
    for name in source.evaluations:
        total = None
        portions = source.evaluation_batches(name, batch, mesh.data_rank, mesh.data)
        for portion, counts in _in_step(portions, mesh, engine.device):
            if stop and stop.number:
                return measured
            sums = engine.evaluate(source.on_device(portion.to(engine.device)), source.task.sums)
            sums = sums if counts else torch.zeros_like(sums)
            total = sums if total is None else total + sums
        assert isinstance(total, torch.Tensor), f"evaluation set {name} is empty"
        if mesh.data > 1:
            dist.all_reduce(total, group=mesh.group("data"))
        measured[name] = source.task.metrics(total.tolist())
    return measured


def _in_step(portions: Iterator[Batch], mesh: Mesh, device: torch.device) -> Iterator[tuple[Batch, bool]]:
    """The portions, and whether they count: a data rank that has run out repeats its last one as long
    as others go on, for a forward pass may be collective (ZeRO-3)."""
    last, ended = None, False
    while True:
        portion = None if ended else next(portions, None)
        ended = portion is None
        if mesh.data > 1:
            going = torch.tensor(float(not ended), device=device)
            dist.all_reduce(going, dist.ReduceOp.MAX, group=mesh.group("data"))
            if not going.item():
                return
        elif ended:
            return
        last = last if portion is None else portion
        assert last is not None, "a data rank has no evaluation sample"
        yield last, not ended
