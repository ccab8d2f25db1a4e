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


def mean_over_data(number: Tensor, mesh: Mesh) -> Tensor:
    """The mean of a scalar over the data axis."""
    group = mesh.group("data")
    if group is None:
        return number
    number = number / mesh.data
    dist.all_reduce(number, group=group)
    return number


def gradient_norm(parameters: list[nn.Parameter], mesh: Mesh) -> Tensor:
    """The 2-norm of the whole net's gradient, a scalar that is the same on every rank."""
    grads = [p.grad for p in parameters if p.grad is not None and counted(p, mesh)]
    norm = nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=parameters[0].device)
    group = mesh.group("model")
    if group is None:
        return norm
    square = norm.square()
    dist.all_reduce(square, group=group)
    return square.sqrt()


def counted(parameter: nn.Parameter, mesh: Mesh) -> bool:
    """Whether this rank counts the parameter in sums over the model-parallel group."""
    return mesh.model_rank == 0 or getattr(parameter, "model_parallel", False)
