"""Parameters and buffers of an engine: how many there are, and weights and moments by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine.gradients import counted
from parallel.mesh import Mesh

MOMENTS = ("exp_avg", "exp_avg_sq")


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


def parameter_state(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weight and moments of a parameter that the optimizer holds unchanged; moments default to zeros."""
    moments = optimizer.state.get(parameter) or dict.fromkeys(MOMENTS, torch.zeros_like(parameter))
    return {"weight": parameter.detach(), **{m: moments[m] for m in MOMENTS}}


@torch.no_grad()
def load_parameter_states(
    saved: dict[nn.Parameter, dict[str, Tensor]], optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """Restores what parameter_state returned; `steps` becomes the optimizer's step count."""
    for parameter, tensors in saved.items():
        parameter.copy_(tensors["weight"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(steps), device=parameter.device),
            **{m: torch.empty_like(parameter).copy_(tensors[m]) for m in MOMENTS},
        }


def buffer_state(model: nn.Module) -> dict[str, Tensor]:
    """The net's buffers, such as running statistics, by name; the same on every rank."""
    return {name: buffer.detach() for name, buffer in model.named_buffers()}


@torch.no_grad()
def load_buffers(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Restores what buffer_state returned."""
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])


def check_buffers(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Raises ValueError, naming the first mismatch, unless saved buffers have the net's names and shapes."""
    own = {name: buffer.shape for name, buffer in model.named_buffers()}
    for name in sorted(set(saved) ^ set(own)):
        raise ValueError(f"buffer {name} is only in {'the checkpoint' if name in saved else 'the net'}")
    for name, shape in own.items():
        if saved[name].shape != shape:
            raise ValueError(f"buffer {name} is {tuple(saved[name].shape)} there, {tuple(shape)} here")


def check_shapes(saved: dict[str, dict[str, Tensor]], own: dict[str, torch.Size]) -> None:
    """Raises ValueError, naming the first mismatch, unless saved parameters have our names and shapes."""
    odd = sorted(set(saved) ^ set(own))
    if odd:
        raise ValueError(
            f"parameter {odd[0]} is only in {'the checkpoint' if odd[0] in saved else 'the net'}"
        )
    for name, shape in own.items():
        if saved[name]["weight"].shape != shape:
            found = tuple(saved[name]["weight"].shape)
            raise ValueError(f"parameter {name} is {found} in the checkpoint, {tuple(shape)} here")
