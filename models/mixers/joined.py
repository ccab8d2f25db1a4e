"""Products of a mixer joined into few, for devices on which each launch counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.ops.device import device_type


def joins(x: Tensor) -> bool:
    """Whether products of x are joined: on a card. The CPU's many cheap calls want contiguous rows."""
    return device_type(x.device) == "cuda"


def project(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """x [..., C] through some linear layers without bias, as views of one product on a card."""
    if len(layers) < 2 or not joins(x):
        return [layer(x) for layer in layers]
    weights: list[Tensor] = [layer.get_parameter("weight") for layer in layers]
    whole = F.linear(x, torch.cat(weights))
    return list(whole.split([weight.shape[0] for weight in weights], -1))


def average(wide: Tensor, narrow: Tensor, up: nn.Module) -> Tensor:
    """(wide + up(narrow)) / 2 for rows [..., D] and a linear layer without bias, on a card as one product."""
    if not (joins(wide) and isinstance(up, nn.Linear)):
        return (wide + up(narrow)) / 2
    return _Average.apply(wide, narrow, up.weight)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wide: Tensor, narrow: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(narrow.dtype)
        ctx.save_for_backward(narrow, weight)
        rows = wide.flatten(0, -2), narrow.flatten(0, -2)
        return torch.addmm(rows[0], rows[1], weight.T, beta=0.5, alpha=0.5).view(wide.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        narrow, weight = ctx.saved_tensors
        half = grad / 2
        rows = half.flatten(0, -2)
        grad_narrow = (rows @ weight).view(narrow.shape)
        return half, grad_narrow, rows.T @ narrow.flatten(0, -2)
