"""Evaluation: every sample of a set once, one wait for the device at the end."""

import torch

from parallel.engine import TorchEngine
from trainer.data.source import Source
from trainer.interrupt import StopRequest


def evaluate(
    engine: TorchEngine, source: Source, batch: int, stop: StopRequest | None = None
) -> dict[str, dict[str, float]]:
    """The measures of every evaluation set of `source`: set → measure → value.

    When `stop` is requested meanwhile, the sets not yet whole are missing.
    """
    measured: dict[str, dict[str, float]] = {}
    for name in source.evaluations:
        total = None
        for portion in source.evaluation_batches(name, batch, engine.data_rank, engine.data_world):
            if stop and stop.number:
                return measured
            portion = source.on_device(portion.to(engine.device))
            sums = engine.evaluate(portion, source.task.sums)
            total = sums if total is None else total + sums
        assert isinstance(total, torch.Tensor), f"evaluation set {name} is empty"
        measured[name] = source.task.metrics(total.tolist())
    return measured
