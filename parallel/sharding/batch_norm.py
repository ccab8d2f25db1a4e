"""Batch norms over several replicas: their statistics are those of the whole micro-batch of all replicas."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.parts.batch_norm import BatchNorm
from parallel.mesh import Mesh


def share_statistics(norm: BatchNorm, mesh: Mesh) -> None:
    """Averages means and variances over the data axis, forward and backward."""
    group = mesh.group("data")
    assert group is not None
    norm.replicas = mesh.data

    def mean(statistic: Tensor) -> Tensor:
        return _Mean.apply(statistic, group, mesh.data)

    norm.mean_over_replicas = mean


class _Mean(torch.autograd.Function):
    """The mean over ranks; each rank's loss depends on it, so backward averages their gradients."""

    @staticmethod
    def forward(ctx, statistic: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        total = statistic.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total / ranks

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total / ctx.ranks, None, None
