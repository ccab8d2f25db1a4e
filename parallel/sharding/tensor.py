"""Tensor parallelism inside a mixer: each rank of a tensor group computes some of the heads.

fairscale's layers always use the whole model-parallel group, which is wider than a tensor group: they
serve the feed-forward and the vocabulary, the small layers here serve the heads.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixers.interface import Mixer
from parallel.mesh import Mesh

Group = dist.ProcessGroup


def shard_heads(mixer: Mixer, mesh: Mesh) -> None:
    """Leaves a mixer this rank's heads; its weights are cut later, when they are drawn."""
    group = mesh.group("tensor")
    assert group is not None
    mixer.heads //= mesh.tensor
    mixer.head_input = HeadInput(group)
    mixer.head_softmax = HeadSoftmax(group)
    mixer.head_mean = HeadMean(group, mesh.tensor)
    for name, dims in mixer.axes().items():
        if dims.get(1) == "head":  # the weight of a linear layer that sums over heads
            path = name.removesuffix(".weight")
            owner, _, attribute = path.rpartition(".")
            layer = mixer.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            setattr(mixer.get_submodule(owner), attribute, HeadSum(layer, mesh, group, dims.get(0) == "head"))


class HeadInput(nn.Module):
    """Identity; backward all-reduces the gradients that come from the heads of all ranks."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        return _AllReduceBackward.apply(x, self._group)


class HeadSoftmax:
    """Softmax over the heads of all ranks, from this rank's logits: all-reduces maxima and sums."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def __call__(self, logits: Tensor, dim: int) -> Tensor:
        return _SoftmaxOverRanks.apply(logits, dim, self._group)


class HeadMean:
    """The mean of the heads of all ranks, from this rank's: all-reduces their sums."""

    def __init__(self, group: Group, ranks: int) -> None:
        self._group, self._ranks = group, ranks

    def __call__(self, numbers: Tensor, dim: int) -> Tensor:
        return _AllReduceForward.apply(numbers.mean(dim) / self._ranks, self._group)


class HeadSum(nn.Module):
    """A linear layer whose inputs are this rank's heads: all-reduces the partial products.

    scatter   return only this rank's slice of the outputs, which are heads again
    """

    def __init__(self, whole: nn.Linear, mesh: Mesh, group: Group, scatter: bool) -> None:
        super().__init__()
        self.weight, self.bias = whole.weight, whole.bias
        self._group, self._ranks, self._rank, self._scatter = group, mesh.tensor, mesh.tensor_rank, scatter

    def forward(self, x: Tensor) -> Tensor:
        y = _AllReduceForward.apply(F.linear(x, self.weight), self._group)
        if self._scatter:
            y = _Scatter.apply(y, self._group, self._ranks, self._rank)
        return y if self.bias is None else y + self.bias


class _AllReduceBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _SoftmaxOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, dim: int, group: Group) -> Tensor:
        highest = logits.amax(dim, keepdim=True)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group)
        weights = (logits - highest).exp()
        total = weights.sum(dim, keepdim=True)
        dist.all_reduce(total, group=group)
        weights = weights / total
        ctx.dim, ctx.group = dim, group
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (weights,) = ctx.saved_tensors
        mean = (grad * weights).sum(ctx.dim, keepdim=True)
        dist.all_reduce(mean, group=ctx.group)
        return weights * (grad - mean), None, None


class _AllReduceForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


class _Scatter(torch.autograd.Function):
    """This rank's slice of the last dimension; backward gathers the gradients of all slices."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group, ranks: int, rank: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        return x.chunk(ranks, -1)[rank].contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = [torch.empty_like(grad) for _ in range(ctx.ranks)]
        dist.all_gather(parts, grad.contiguous(), group=ctx.group)
        return torch.cat(parts, -1), None, None, None
