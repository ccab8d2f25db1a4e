"""From configs to an engine: this process's part of a net, ready to train."""

from __future__ import annotations

import torch

from models import ModelConfig, build_model
from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import Engine, Precision, TorchEngine
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.sharding.parallelize import parallelize


def build_engine(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    mesh: Mesh,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    seed: int = 0,
    batch: int,
    accumulate: int = 1,
) -> Engine:
    """The engine that `parallel` asks for; `batch` is the global batch of one optimizer step.

    Raises UserError where net, mesh and batch do not fit.
    """
    if batch % (accumulate * mesh.data):
        raise UserError(
            f"train.batch={batch} is not divisible by accumulate {accumulate} × {mesh.data} data ranks"
        )
    if parallel.engine == "torch":
        net = parallelize(_on_meta(model), mesh, parallel, seed, device)
        return TorchEngine(net, optimizer, device, precision, mesh)
    from parallel.engine.deepspeed_engine import DeepSpeedEngine, take_share

    take = take_share(precision) if parallel.zero == 3 else None
    net = parallelize(_on_meta(model), mesh, parallel, seed, device, take)
    return DeepSpeedEngine(net, optimizer, device, precision, mesh, parallel, batch, accumulate)


def _on_meta(model: ModelConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(model)
