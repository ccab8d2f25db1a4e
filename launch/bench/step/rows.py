"""`translution bench step`: a whole training step over its operator and its dense products alone.

The step is the one that training takes: a batch of random data, forward, loss, backward, clipping, AdamW.
Its passes over the pairs and its other matrix products are recorded once, with their tensors, and computed
again alone, before and after each step. On a card the same parts are counted, without one.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from launch.bench.step.parts import Call, parts_of_step
from models.ops.cards import CARDS, HOST_LAUNCH, Card
from models.ops.count import launches
from parallel.engine import build
from parallel.engine.interface import Engine
from parallel.errors import UserError
from parallel.rehearsal.fakes import fake_device, name_modules, one_rank
from trainer.config.run import RunConfig, parse_config, with_values
from trainer.data.feed import on_device
from trainer.data.source import Batch
from trainer.setup import build_engine
from trainer.train import train_step

TARGET = 1.15  # on the CPU
_VISION = {"kind": "vit", "classes": 10, "pool": "cls"}
_TEXT = {"kind": "gpt", "vocabulary": 50257}
_PAPER = {"width": 192, "depth": 2, "mlp": 768}
_BASE = {"width": 768, "depth": 2, "mlp": 3072}
_CPU_NETS = {
    "vision": (_VISION | _PAPER | {"image_size": 84, "patch_size": 12, "channels": 1}, 32),
    "text": (_TEXT | _PAPER | {"tokens": 160}, 4),
}
_CARD_NETS = {
    "vision": (_VISION | _BASE | {"image_size": 224, "patch_size": 16}, 128),
    "text": (_TEXT | _BASE | {"tokens": 1024}, 8),
}
"""Nets of two layers and their batches: the paper's small ones, and the layers of ViT-B/16 and GPT-base."""


def usual_nets(card: str | None) -> list[RunConfig]:
    """A vision net and a GPT for the CPU, or for a card."""
    return [
        parse_config(
            {
                "name": name,
                "precision": "bf16" if card else "fp32",
                "model": net | {"mixer": {"kind": "translution", "heads": net["width"] // 64}},
                "data": {"kind": "synthetic"},
                "train": {"batch": batch},
            }
        )
        for name, (net, batch) in (_CARD_NETS if card else _CPU_NETS).items()
    ]


def bench_step(configs: list[RunConfig], repeat: int, card: str | None) -> dict[str, Any]:
    """Measure a step of each net on one thread of the CPU, or count it for a card (its key in CARDS).

    A net that is measured is whole; of one that is counted, the first rank of its offset and tensor axes is,
    without collectives. Raises UserError for a study, an unknown card, and float32 on a card.
    """
    if card is not None and card not in CARDS:
        raise UserError(f"--card {card}: one of {', '.join(CARDS)} is needed")
    for config in configs:
        if config.study:
            raise UserError(f"{config.name}: is a study of several nets; add study=null to time one net")
        if card and config.precision != "bf16":
            raise UserError("--card: a card's kernels are counted in bfloat16; add precision=bf16")
    torch.set_num_threads(1)
    rows = []
    for config in configs:
        print(f"{'counting' if card else 'measuring'} {config.name} …", file=sys.stderr, flush=True)
        random = with_values(config, {"data": {"kind": "synthetic"}, "device": "cpu"})
        rows.append(_counted(random, CARDS[card]) if card else _measured(random, repeat))
    device = CARDS[card].name if card else f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "device": device,
        "torch": torch.__version__,
        "counted": card is not None,
        "repeat": repeat,
        "target": None if card else TARGET,
        "rows": rows,
    }


def _measured(config: RunConfig, repeat: int) -> dict[str, Any]:
    """Seconds of CPU time, which other processes hardly affect; medians over the repetitions."""
    engine = build_engine(config)
    batches = _batches(config, engine)
    updates = _time_updates(engine)
    _step(engine, batches)  # makes tables and the optimizer's states
    operator: list[Call] = []
    products: list[Call] = []

    def note(call: Call) -> Any:
        operator.append(call)
        return call.run()

    with parts_of_step(note, lambda call, out, product: products.append(call) if product else None):
        _step(engine, batches)
    times = []
    for _ in range(repeat):
        before = _seconds(operator), _seconds(products)
        start = time.process_time()
        _step(engine, batches)
        whole = time.process_time() - start
        after = _seconds(operator), _seconds(products)
        ours, dense = ((b + a) / 2 for b, a in zip(before, after, strict=True))
        rest = whole - ours - dense - updates[-1]
        times.append((whole, ours, dense, updates[-1], rest, whole / (ours + dense)))
    whole, ours, dense, update, rest, ratio = (statistics.median(c) for c in zip(*times, strict=True))
    return _row(config, engine, whole, ours, dense, ratio) | {
        "over_both_range": [min(each[-1] for each in times), max(each[-1] for each in times)],
        "rest_seconds": {"update": update, "other": max(0.0, rest)},
    }


def _counted(config: RunConfig, card: Card) -> dict[str, Any]:
    """Seconds of the kernels, and those in which the card waits for the host to launch the next."""
    parallel = config.parallel.model_copy(update={"data": "auto"})
    seconds: defaultdict[str, float] = defaultdict(float)
    with one_rank(parallel, parallel.offset * parallel.tensor, 0, card) as (mesh, recorder):
        engine = build.build_engine(
            config.model,
            config.train,
            parallel,
            mesh,
            fake_device(),
            precision=config.precision,
            batch=config.train.batch,
            accumulate=config.train.accumulate,
        )
        name_modules(engine.model)
        batches = _batches(config, engine)

        def spent() -> float:
            work = recorder.work()
            return work.seconds + work.launching

        def operator(call: Call) -> Any:
            start = spent()
            out = call.run()
            seconds["operator"] += spent() - start
            return out

        def other(call: Call, out: Any, product: bool) -> None:
            kernels = launches(call.function, call.args, call.kwargs, out)
            name = "dense" if product else call.function.overloadpacket.__name__
            seconds[name] += sum(max(card.seconds(kernel), HOST_LAUNCH) for kernel in kernels)

        _step(engine, batches)  # makes the optimizer's states
        recorder.restart()
        with parts_of_step(operator, other):
            _step(engine, batches)
        whole = spent()
    ours, dense = seconds.pop("operator"), seconds.pop("dense")
    row = _row(config, engine, whole, ours, dense, whole / (ours + dense))
    return row | {"rest_seconds": dict(seconds)}


def _row(
    config: RunConfig, engine: Engine, whole: float, operator: float, dense: float, ratio: float
) -> dict[str, Any]:
    model, tokens = config.model, config.model.token_grid.num_tokens
    return {
        "name": config.name,
        "shape": f"N={tokens}, B={config.train.batch}, C={model.width}, {len(model.layer_specs())} layers",
        "parameters": engine.parameters,
        "step_seconds": whole,
        "operator_seconds": operator,
        "dense_seconds": dense,
        "over_both": ratio,
    }


def _batches(config: RunConfig, engine: Engine) -> Iterator[Batch]:
    source = config.build_source()
    batches = source.train_batches(0, config.train.batch, config.train.accumulate, 0, 1)
    return on_device(batches, source, engine.device, training=True)


def _step(engine: Engine, batches: Iterator[Batch]) -> None:
    train_step(engine, (next(batches) for _ in range(engine.accumulate)))


def _time_updates(engine: Any) -> list[float]:
    """Seconds of each update from now on: average, clipping and AdamW."""
    update, seconds = engine.update, []

    def timed(*args: Any) -> Any:
        start = time.process_time()
        result = update(*args)
        seconds.append(time.process_time() - start)
        return result

    engine.update = timed
    return seconds


def _seconds(calls: list[Call]) -> float:
    start = time.process_time()
    for call in calls:
        call.run()
    return time.process_time() - start
