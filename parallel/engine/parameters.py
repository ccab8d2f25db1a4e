"""Parameters and buffers of an engine: how many there are, and what this rank holds of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine.gradients import counted
from parallel.engine.interface import MOMENTS, WEIGHT, HeldState
from parallel.mesh import Mesh


def count_parameters(model: nn.Module, mesh: Mesh) -> int:
    """The parameters of the whole net, each counted once over the ranks that hold it."""
    # ds_numel is the whole size of a parameter that ZeRO-3 has partitioned.
    own = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if counted(p, mesh))
    group = mesh.group("model")
    if group is None:
        return own
    total = torch.tensor(own, device=next(model.parameters()).device)
    dist.all_reduce(total, group=group)
    return int(total)


@torch.no_grad()
def held_by_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, moments: bool) -> HeldState:
    """The state of an optimizer that holds the parameters unchanged; moments that it lacks begin as zeros."""
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    tensors = {WEIGHT: {name: p.detach().view(-1) for name, p in named.items()}}
    if moments:
        for parameter in trained:
            optimizer.state[parameter] = optimizer.state.get(parameter) or _no_moments(parameter)
        for moment in MOMENTS:
            states = {name: optimizer.state[p] for name, p in named.items() if p in trained}
            tensors[moment] = {name: state[moment].view(-1) for name, state in states.items()}
    runs = {name: (0, p.numel()) for name, p in named.items()}
    return HeldState(runs, tensors, held_buffers(model), replicated=True)


def _no_moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step."""
    state = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    return {"step": torch.zeros((), device=parameter.device), **state}


def held_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The net's buffers, such as running statistics, by name; the same on every rank."""
    return {name: buffer.detach() for name, buffer in model.named_buffers()}
