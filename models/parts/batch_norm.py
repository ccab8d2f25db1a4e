"""Batch normalisation over all replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.initial import Draw


def only_replica(statistic: Tensor) -> Tensor:
    """The mean over one replica."""
    return statistic


class BatchNorm(nn.Module):
    """x[B, C, …] → the same, normalised over all other dimensions, in training by the batch's statistics.

    `mean_over_replicas` is the hook where parallel/ averages statistics over the data axis; replicas have
    equally many samples. In training the running statistics follow with `momentum`, their variance by the
    unbiased estimate of the whole batch. A forward pass without gradients leaves them alone, so that
    recomputed layers count once. Running statistics stay in float32 (or float64) where weights are narrower.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.replicas = 1
        self.mean_over_replicas: Callable[[Tensor], Tensor] = only_replica
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x if x.dtype == torch.float64 else x.float()
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean = self.mean_over_replicas(wide.mean(dims))
            var = self.mean_over_replicas((wide - mean.view(shape)).square().mean(dims))
            if torch.is_grad_enabled():
                self._follow(mean.detach(), var.detach(), x.numel() // x.shape[1] * self.replicas)
        scale = self.weight * (var + self.eps).rsqrt()
        return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * count / max(1, count - 1)).to(self.running_var.dtype), self.momentum)

    def draws(self) -> dict[str, Draw]:
        """See models/initial.py; running statistics begin at those of a normalised input."""
        return {
            "weight": Draw(value=1.0),
            "bias": Draw(),
            "running_mean": Draw(),
            "running_var": Draw(value=1.0),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name in ("running_mean", "running_var"):
            if self._buffers[name].dtype in (torch.bfloat16, torch.float16):  # pyright: ignore
                self._buffers[name] = self._buffers[name].float()  # pyright: ignore
        return self
