"""Learned scale of a residual branch (arXiv 2103.17239)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.initial import Draw


class LayerScale(nn.Module):
    """x[…, C]·γ; γ begins at `initial`."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma

    def draws(self) -> dict[str, Draw]:
        """See models/initial.py."""
        return {"gamma": Draw(value=self.initial)}
