"""One training step of a small net on a mesh, measured: work for processes of the planner's tests."""

from __future__ import annotations

import gc
from typing import Any, NamedTuple

import torch

from launch.bench.peak_memory import peak_memory
from models import GPTConfig, ModelConfig
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import Precision
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.planner.plan import plan
from parallel.processes import join_processes
from parallel.traffic_counter import counted_traffic
from trainer.data.source import Batch
from trainer.train import train_step


class Case(NamedTuple):
    model: ModelConfig
    parallel: ParallelConfig
    batch: int = 8
    accumulate: int = 1
    precision: Precision = "fp32"


def payloads(cases: list[Case]) -> list[tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]]:
    """Counted and predicted payloads of the third step of each case, of this rank."""
    join_processes(torch.device("cpu"))
    found = []
    for case in cases:
        mesh, step = _stepping(case)
        for _ in range(2):  # in which DeepSpeed also traces the net
            step()
        with counted_traffic(mesh) as traffic:
            step()
        predicted = plan(case.model, case.parallel, mesh, case.batch, case.accumulate, case.precision)
        found.append((dict(traffic.payload), dict(predicted.traffic.by_group(mesh).payload)))
        forget_mesh()
    return found


def peaks(cases: list[Case]) -> list[tuple[int, int]]:
    """Measured and predicted peak bytes of each case, of this rank."""
    join_processes(torch.device("cpu"))
    found = []
    for case in cases:
        mesh, step = _stepping(case)
        engine, inputs = step()
        held = _held_bytes(engine, case.parallel) + (inputs if case.parallel.zero < 3 else 0)
        measured = held + peak_memory(step, torch.device("cpu"))
        predicted = plan(
            case.model, case.parallel, mesh, case.batch, case.accumulate, case.precision, cpu=True
        )
        found.append((measured, predicted.memory.peak))
        forget_mesh()
    return found


def _held_bytes(engine: Any, parallel: ParallelConfig) -> int:
    """Weights and optimizer states between two steps; under ZeRO-3, whose engine spreads what it holds over
    many buffers, all tensors of this process."""
    if parallel.zero < 3:
        states = engine.optimizer.state
        return sum(_bytes(t) for p in engine.model.parameters() for t in (p, *states[p].values()))
    gc.collect()
    alive = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in alive}
    return sum(storages.values())


def _stepping(case: Case) -> tuple[Mesh, Any]:
    mesh = join_mesh(case.parallel)
    engine = build_engine(
        case.model,
        OptimizerConfig(steps=10),
        case.parallel,
        mesh,
        torch.device("cpu"),
        batch=case.batch,
        accumulate=case.accumulate,
        precision=case.precision,
    )
    batch = _batch(case.model, case.batch // case.accumulate // mesh.data)

    def step() -> tuple[Any, int]:
        train_step(engine, [batch] * case.accumulate)
        return engine, sum(map(_bytes, batch))

    return mesh, step


def _batch(model: ModelConfig, count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, GPTConfig):
        ids = torch.randint(model.vocabulary, (2, count, model.tokens), generator=generator)
        return Batch(ids[0].clone(), ids[1].clone())
    images = torch.randn(count, model.channels, *model.image_shape, generator=generator)
    return Batch(images, torch.randint(model.classes, (count,), generator=generator))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
