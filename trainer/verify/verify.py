"""Does a net train to the same numbers on every mesh, with either engine? (`translution verify`)"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models import ModelConfig, build_model
from models.gpt import GPTConfig
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.processes import join_processes
from parallel.sharding.layout import shards
from parallel.spawn import run_processes
from parallel.traffic_counter import counted_traffic
from trainer.data.source import Batch
from trainer.metrics import Classification, LanguageModel

STEPS, BATCH, ACCUMULATE = 3, 16, 2  # a sample for each of up to eight replicas
# Every step is clipped, so that a wrong norm gives wrong weights. AdamW would hide it, for it divides by
# the gradients' size, and would make of a rounding error in a tiny gradient a part of lr: an eps of the
# clipped gradients' size prevents both.
OPTIMIZER = OptimizerConfig(steps=10, lr=1e-2, clip=0.05, weight_decay=0.1, eps=1e-4)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Row:
    """What one layout came to; differences are the largest over ranks, parameters and steps.

    loss, norm          of the last step
    loss_error          relative
    norm_error          relative
    weight_error        absolute, after clipping and update
    bank_bytes          that one rank holds
    sent                bytes that left one rank in the last step, by axis of the mesh
    """

    layout: str
    loss: float
    norm: float
    loss_error: float
    norm_error: float
    weight_error: float
    bank_bytes: int
    sent: dict[str, int]

    @property
    def agrees(self) -> bool:
        return max(self.loss_error, self.norm_error, self.weight_error) <= TOLERANCE


def layouts(processes: int, zeros: tuple[int, ...] = (0, 1, 2, 3)) -> list[ParallelConfig]:
    """Every mesh of so many processes, with either engine, and activation checkpointing on some."""
    found = []
    for offset, tensor in itertools.product(range(1, processes + 1), repeat=2):
        if processes % (offset * tensor) or tensor > 2:
            continue
        engines = [("torch", 0), *(("deepspeed", zero) for zero in zeros)]
        for engine, zero in engines:
            policy = ("none", "block", "block_cpu", "operator")[len(found) % 4]
            values = {"offset": offset, "tensor": tensor, "engine": engine, "zero": zero}
            found.append(ParallelConfig.model_validate(values | {"activations": policy}))
    return found


def verify(model: ModelConfig, parallels: list[ParallelConfig], processes: int, seconds: float) -> list[Row]:
    """Trains `model` on one process and on each of the layouts, and compares.

    Raises what run_processes does.
    """
    return run_processes(compare, processes, model, parallels, seconds=seconds)[0]


def compare(model: ModelConfig, parallels: list[ParallelConfig]) -> list[Row]:
    """What verify does, inside each of its processes."""
    join_processes(torch.device("cpu"), group_of_one=True)
    alone = _train(model, ParallelConfig(), Mesh())
    return [_row(model, parallel, alone) for parallel in parallels]


@dataclass
class _Run:
    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    bank_bytes: int
    sent: dict[str, int]


def _train(model: ModelConfig, parallel: ParallelConfig, mesh: Mesh) -> _Run:
    engine = build_engine(
        model, OPTIMIZER, parallel, mesh, torch.device("cpu"), batch=BATCH, accumulate=ACCUMULATE
    )
    task = LanguageModel() if isinstance(model, GPTConfig) else Classification()
    results, sent = [], {}
    for step in range(STEPS):
        batches = [_batch(model, step, micro, mesh) for micro in range(ACCUMULATE)]
        with counted_traffic(mesh) as traffic:
            results.append(engine.step(batches, ACCUMULATE, task.loss))
        sent = traffic.sent(mesh)
    state = engine.state()["parameters"]
    weights = {name: entry["weight"].clone() for name, entry in state.items()}
    return _Run(
        [r.loss.item() for r in results],
        [r.grad_norm.item() for r in results],
        weights,
        bank_bytes(engine.model),
        sent,
    )


def bank_bytes(net: nn.Module) -> int:
    """Of the banks that this rank holds of a net in training; under ZeRO-3 its share of them."""
    banks = (p for name, p in net.named_parameters() if name.endswith("_bank"))
    held = (getattr(bank, "ds_tensor", bank) for bank in banks)
    return sum(bank.numel() * bank.element_size() for bank in held)


def _batch(model: ModelConfig, step: int, micro: int, mesh: Mesh) -> Batch:
    """This rank's share of a random micro-batch that is the same on every mesh."""
    generator = torch.Generator().manual_seed(100 * step + micro)
    count = BATCH // ACCUMULATE
    if isinstance(model, GPTConfig):
        ids = torch.randint(model.vocabulary, (count, model.tokens + 1), generator=generator)
        whole = Batch(ids[:, :-1], ids[:, 1:])
    else:
        shape = (count, model.channels, model.image_size, model.image_size)
        labels = torch.randint(model.classes, (count,), generator=generator)
        whole = Batch(torch.randn(shape, generator=generator), labels)
    return Batch(*(part.chunk(mesh.data)[mesh.data_rank] for part in whole))


def _row(model: ModelConfig, parallel: ParallelConfig, alone: _Run) -> Row:
    mesh = join_mesh(parallel)
    run = _train(model, parallel, mesh)
    with torch.device("meta"):
        held = shards(build_model(model), mesh)
    worst = 0.0
    for name, weight in run.weights.items():
        whole, shard = alone.weights[name], held[name]
        if shard.entries is not None:
            whole = whole[list(shard.entries)]
        worst = max(worst, (weight - shard.take(whole)).abs().max().item())
    errors = torch.tensor([_worst(run.losses, alone.losses), _worst(run.norms, alone.norms), worst])
    if dist.is_initialized():
        dist.all_reduce(errors, dist.ReduceOp.MAX)
    forget_mesh()
    name = f"{mesh} {parallel.engine}" + (f" ZeRO-{parallel.zero}" if parallel.engine == "deepspeed" else "")
    name += f" activations {parallel.activations}"
    loss_error, norm_error, weight_error = errors.tolist()
    return Row(
        name,
        run.losses[-1],
        run.norms[-1],
        loss_error,
        norm_error,
        weight_error,
        run.bank_bytes,
        run.sent,
    )


def _worst(numbers: list[float], references: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(numbers, references, strict=True))
