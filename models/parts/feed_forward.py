"""The feed-forward of a layer."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "relu", "relu2"]


class FeedForward(nn.Module):
    """x[…, C] → […, C] through a hidden width with GELU, ReLU or its square."""

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.activation == "gelu":
            return self.down(F.gelu(x))
        x = F.relu(x)
        return self.down(x.square() if self.activation == "relu2" else x)
