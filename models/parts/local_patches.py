"""Local patch interaction: neighbours on the grid exchange what cross-covariance attention cannot."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.mixers.cost import Cost, Load
from models.mixers.measured_cost import measured_cost
from models.parts.batch_norm import BatchNorm
from models.parts.stems import Convolution


class LocalPatches(nn.Module):
    """x[B, N, C] → [B, N, C] on the grid (H, W): depthwise 3×3, GELU, batch norm, depthwise 3×3.

    Source: arXiv 2106.09681, section 3.3; GELU stands before the norm, as in the public code.
    """

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.dim, self.grid, self.num_tokens = dim, grid, grid[0] * grid[1]
        self.first = Convolution(dim, dim, 3, padding=1, groups=dim)
        self.norm = BatchNorm(dim)
        self.second = Convolution(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BCHW = x_BNC.transpose(1, 2).unflatten(2, self.grid)
        x_BCHW = self.second(self.norm(F.gelu(self.first(x_BCHW))))
        return x_BCHW.flatten(2).transpose(1, 2)

    def cost(self, load: Load) -> Cost:
        """See `Mixer.cost`."""
        return measured_cost(self, load)
