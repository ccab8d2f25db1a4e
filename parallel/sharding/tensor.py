"""Tensor parallelism inside a mixer: heads are split over the ranks of a tensor group.

The model-parallel group is wider than this one, so fairscale's layers, which always use the whole of
it, serve the feed-forward and the vocabulary (parallelize.py), and these small ones the heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixers.attention import Attention
from models.mixers.translution import Translution
from parallel.mesh import Mesh

Group = dist.ProcessGroup


def shard_heads(layer: Translution | Attention, mesh: Mesh) -> None:
    """Leaves a mixer its rank's heads; its projections' outputs are cut when their weights are drawn."""
    group = mesh.group("tensor")
    assert group is not None
    layer.enter = EnterHeads(group)  # pyright: ignore[reportAttributeAccessIssue]
    layer.heads //= mesh.tensor
    layer.out = HeadsIn(layer.out, mesh, group)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(layer, Translution):
        layer.recipe = replace(layer.recipe, heads=layer.heads)
        if hasattr(layer, "v_up"):
            layer.v_up = HeadsIn(layer.v_up, mesh, group, scatter=True)  # pyright: ignore


class EnterHeads(nn.Module):
    """The identity; backward sums the gradients that the heads of all ranks send back."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        return _Enter.apply(x, self._group)


class HeadsIn(nn.Module):
    """A linear layer whose inputs are this rank's heads: partial products are summed over the ranks.

    With `scatter` the result goes on as this rank's slice of the outputs.
    """

    def __init__(self, whole: nn.Linear, mesh: Mesh, group: Group, scatter: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = whole.weight, whole.bias
        self._group, self._ranks, self._rank, self._scatter = group, mesh.tensor, mesh.tensor_rank, scatter

    def forward(self, x: Tensor) -> Tensor:
        y = _Leave.apply(F.linear(x, self.weight), self._group)
        if self._scatter:
            y = _Scatter.apply(y, self._group, self._ranks, self._rank)
        return y if self.bias is None else y + self.bias


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


class _Scatter(torch.autograd.Function):
    """This rank's slice of the last dimension; backward gathers the slices' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group, ranks: int, rank: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        return x.chunk(ranks, -1)[rank].contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = [torch.empty_like(grad) for _ in range(ctx.ranks)]
        dist.all_gather(parts, grad.contiguous(), group=ctx.group)
        return torch.cat(parts, -1), None, None, None
