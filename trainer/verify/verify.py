"""`translution verify`: trains a net on several meshes and compares the numbers with one process."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models import Mixer, ModelConfig, build_model
from models.transformer import GPTConfig
from parallel.engine.build import build_engine
from parallel.engine.interface import WEIGHT
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.processes import join_processes
from parallel.sharding.layout import shards
from parallel.spawn import run_processes
from parallel.traffic_counter import counted_traffic
from trainer.data.source import Batch
from trainer.train import train_step

STEPS, BATCH, ACCUMULATE = 3, 16, 2  # one sample in a micro-batch for each of up to eight replicas
# Every step is clipped, so that a wrong norm gives wrong weights. AdamW divides by the gradients' size,
# which would hide a wrong norm and blow up rounding errors of tiny gradients; an eps of the clipped
# gradients' size prevents both.
OPTIMIZER = OptimizerConfig(steps=10, lr=1e-2, clip=0.05, weight_decay=0.1, eps=1e-4)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class LayoutResult:
    """The numbers of one layout; errors are the largest over ranks, parameters and steps.

    loss, norm          of the last step
    loss_error          relative to one process
    norm_error          relative to one process
    weight_error        absolute, after clipping and update
    bank_bytes          of the banks that one rank holds
    sent                bytes that one rank sends in the last step, by axis of the mesh
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
    """Every mesh of `processes` with tensor ≤ 2, on both engines; recomputes activations on some of them."""
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


def verify(
    model: ModelConfig, parallels: list[ParallelConfig], processes: int, seconds: float
) -> list[LayoutResult]:
    """Trains `model` on one process and on each of the layouts, and compares.

    Raises what run_processes does.
    """
    return run_processes(compare, processes, model, parallels, seconds=seconds)[0]


def compare(model: ModelConfig, parallels: list[ParallelConfig]) -> list[LayoutResult]:
    """Run in each of verify's processes: train the reference and every layout, and compare."""
    join_processes(torch.device("cpu"), group_of_one=True)
    reference = _train(model, ParallelConfig(), Mesh())
    return [_compare_layout(model, parallel, reference) for parallel in parallels]


@dataclass
class _Run:
    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]  # those of parameters flat: of this rank's part the elements of `runs`
    runs: dict[str, tuple[int, int]]
    bank_bytes: int
    sent: dict[str, int]


def _train(model: ModelConfig, parallel: ParallelConfig, mesh: Mesh) -> _Run:
    engine = build_engine(
        model, OPTIMIZER, parallel, mesh, torch.device("cpu"), batch=BATCH, accumulate=ACCUMULATE
    )
    results, sent = [], {}
    for step in range(STEPS):
        batches = [_batch(model, step, micro, mesh) for micro in range(ACCUMULATE)]
        with counted_traffic(mesh) as traffic:
            results.append(train_step(engine, batches))
        sent = traffic.sent(mesh)
    state = engine.state(moments=False)
    weights = {name: tensor.clone() for name, tensor in state.tensors[WEIGHT].items()}
    weights |= {name: statistic.clone() for name, statistic in state.buffers.items()}
    return _Run(
        [r.loss.item() for r in results],
        [r.grad_norm.item() for r in results],
        weights,
        state.runs,
        bank_bytes(engine.model),
        sent,
    )


def bank_bytes(net: nn.Module) -> int:
    """Bytes of the banks that this rank holds of a net in training; under ZeRO-3 of its partitions."""
    mixers = (module for module in net.modules() if isinstance(module, Mixer))
    banks = [
        mixer.get_parameter(name)
        for mixer in mixers
        for name, dims in mixer.axes().items()
        if "entry" in dims.values()
    ]
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
        shape = (count, model.channels, *model.image_shape)
        labels = torch.randint(model.classes, (count,), generator=generator)
        whole = Batch(torch.randn(shape, generator=generator), labels)
    return Batch(*(part.chunk(mesh.data)[mesh.data_rank] for part in whole))


def _compare_layout(model: ModelConfig, parallel: ParallelConfig, reference: _Run) -> LayoutResult:
    mesh = join_mesh(parallel)
    run = _train(model, parallel, mesh)
    with torch.device("meta"):
        held = shards(build_model(model), mesh)
    weight_error = 0.0
    for name, weight in run.weights.items():
        part, shard = reference.weights[name], held.get(name)  # None: statistics, the same everywhere
        if shard is not None:
            whole = part.view(shard.full)
            part = shard.take(whole if shard.entries is None else whole[list(shard.entries)])
            part = part.reshape(-1)[slice(*run.runs[name])]
        weight_error = max(weight_error, (weight - part).abs().max().item())
    loss_error = _largest_error(run.losses, reference.losses)
    norm_error = _largest_error(run.norms, reference.norms)
    errors = torch.tensor([loss_error, norm_error, weight_error])
    if dist.is_initialized():
        dist.all_reduce(errors, dist.ReduceOp.MAX)
    forget_mesh()
    loss_error, norm_error, weight_error = errors.tolist()
    engine = f"deepspeed ZeRO-{parallel.zero}" if parallel.engine == "deepspeed" else "torch"
    return LayoutResult(
        f"{mesh} {engine} activations {parallel.activations}",
        run.losses[-1],
        run.norms[-1],
        loss_error,
        norm_error,
        weight_error,
        run.bank_bytes,
        run.sent,
    )


def _largest_error(numbers: list[float], references: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(numbers, references, strict=True))
