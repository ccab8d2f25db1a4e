"""From configs to an engine: this process's part of a net, ready to train."""

from __future__ import annotations

import torch

from models import ModelConfig, build_model
from models.initial import initial_values
from parallel.engine.deepspeed_settings import check_deepspeed_keys
from parallel.engine.interface import Engine, Precision, micro_batch_size
from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.sharding.layout import shards
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

    Raises UserError where net, mesh, batch and precision do not fit together.
    """
    micro_batch = micro_batch_size(batch, accumulate, mesh.data)
    parallel.check_precision(precision)
    check_deepspeed_keys(parallel)
    if parallel.engine == "torch":
        net = parallelize(_on_meta(model), mesh, parallel, seed, device)
        return TorchEngine(net, optimizer, device, precision, mesh, accumulate)
    from parallel.engine.deepspeed_engine import DeepSpeedEngine, zero3_partitioner

    partition = zero3_partitioner(precision) if parallel.zero == 3 else None
    net = parallelize(_on_meta(model), mesh, parallel, seed, device, partition)
    return DeepSpeedEngine(net, optimizer, device, precision, mesh, parallel, micro_batch, accumulate)


def check_trainable(
    model: ModelConfig,
    parallel: ParallelConfig,
    mesh: Mesh,
    *,
    precision: Precision = "fp32",
    batch: int,
    accumulate: int = 1,
) -> None:
    """Raises the UserError that build_engine would, without drawing a weight."""
    parallel.check_precision(precision)
    check_deepspeed_keys(parallel)
    micro_batch_size(batch, accumulate, mesh.data)
    try:
        net = _on_meta(model)
        shards(net, mesh)
        initial_values(net)
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def _on_meta(model: ModelConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(model)
