"""Measures how long an optimizer step of a net takes on this machine."""

from __future__ import annotations

import time
from statistics import median

import torch

from trainer.config.run import RunConfig
from trainer.data.feed import on_device
from trainer.setup import build_engine
from trainer.train import train_step

_WARM_UP, _MEASURED = 2, 7


def step_seconds(config: RunConfig) -> float:
    """The median over a few steps of the whole net in this process, after the first ones.

    Data are loaded before the clock runs. The net and its optimizer are freed afterwards.
    """
    engine, source, train = build_engine(config), config.build_source(), config.train
    batches = on_device(
        source.train_batches(0, train.batch, train.accumulate), source, engine.device, training=True
    )
    seconds = []
    for _ in range(_WARM_UP + _MEASURED):
        micro_batches = [next(batches) for _ in range(train.accumulate)]
        start = _now(engine.device)
        train_step(engine, micro_batches)
        seconds.append(_now(engine.device) - start)
    batches.close()
    return median(seconds[_WARM_UP:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
