"""Gradients of a sharded net: their mean over replicas, their norm, and clipping by it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Mesh


def average_gradients(parameters: list[nn.Parameter], mesh: Mesh) -> None:
    """Replaces each gradient by its mean over the data axis; every rank calls it."""
    group = mesh.group("data")
    if group is None:
        return
    work = []
    for parameter in parameters:
        if parameter.grad is None:  # every rank must send the same tensors
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.div_(mesh.data)
        work.append(dist.all_reduce(parameter.grad, group=group, async_op=True))
    for each in work:
        each.wait()


def mean_over_data(loss: Tensor, votes: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The mean of the loss, and the sum of the votes, over the data axis."""
    return _reduce_together(loss / mesh.data, votes, mesh.group("data"))


def mean_over_world(loss: Tensor, votes: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The mean of the loss, and the sum of the votes, over all ranks."""
    data, model = mesh.group("data"), mesh.group("model")
    group = dist.group.WORLD if data and model else data or model
    return _reduce_together(loss / mesh.world, votes, group)


def gradient_norm(parameters: list[nn.Parameter], votes: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The 2-norm of the whole net's gradient, a scalar that is the same on every rank, and the sum of the
    votes over the model-parallel group."""
    grads = [p.grad for p in parameters if p.grad is not None and counted(p, mesh)]
    norm = nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=parameters[0].device)
    group = mesh.group("model")
    if group is None:
        return norm, votes
    square, votes = _reduce_together(norm.square(), votes, group)
    return square.sqrt(), votes


def _reduce_together(number: Tensor, votes: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The sums of a scalar and of the votes over `group`, in one all-reduce."""
    if group is None:
        return number, votes
    both = torch.cat([number.reshape(1), votes.to(number.dtype)])
    dist.all_reduce(both, group=group)
    return both[0], both[1:].to(votes.dtype)


def counted(parameter: nn.Parameter, mesh: Mesh) -> bool:
    """Whether this rank counts the parameter in sums over the model-parallel group."""
    return mesh.model_rank == 0 or getattr(parameter, "model_parallel", False)
