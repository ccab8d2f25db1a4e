"""Fourier code of a grid, projected to the tokens (the public code of arXiv 2106.09681)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid

SMALLEST = 1e-6


def fourier_code(grid: tuple[int, int], hidden: int, temperature: float, device: torch.device) -> Tensor:
    """code[H·W, 2·hidden] in float32: rows, then columns; even channels sines, odd ones cosines.

    Positions count from 1 and are divided by the last, so a cell's code depends on the grid's size.
    """
    places = [torch.arange(1, n + 1, device=device, dtype=torch.float32) for n in grid]
    rows, columns = torch.meshgrid(*(p / (p[-1] + SMALLEST) * 2 * math.pi for p in places), indexing="ij")
    channel = torch.arange(hidden, device=device, dtype=torch.float32)
    period = temperature ** (2 * (channel // 2) / hidden)
    angles = torch.stack((rows, columns), -1).flatten(0, 1).unsqueeze(-1) / period  # [N, 2, hidden]
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(1)


class FourierCode(nn.Module):
    """positions[1, N, C] of a grid: its code through a linear layer."""

    def __init__(self, grid: tuple[int, int], width: int, hidden: int, temperature: float) -> None:
        super().__init__()
        self.grid, self.hidden, self.temperature = grid, hidden, temperature
        self.projection = nn.Linear(2 * hidden, width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        code = fourier_code(self.grid, self.hidden, self.temperature, x_BNC.device)
        return self.projection(code.to(self.projection.weight.dtype)).unsqueeze(0)

    def draws(self) -> dict[str, Draw]:
        """As torch begins a 1×1 convolution."""
        bound = Draw(bound=(2 * self.hidden) ** -0.5)
        return {"projection.weight": bound, "projection.bias": bound}


class FourierPosition(PositionConfig):
    """Sines and cosines of rows and columns, projected and added before the first layer.

    hidden       channels of either coordinate, an even number
    temperature  longest period over the shortest
    """

    kind: Literal["fourier"] = "fourier"
    hidden: int = Field(default=32, ge=2, multiple_of=2)
    temperature: float = Field(default=10_000.0, gt=0)

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        if tokens.shape is None or len(tokens.shape) != 2:
            return "it codes rows and columns of an image's grid"
        if tokens.class_token:
            return "it has no code for a class token: write pool: class_attention or mean"
        return None

    def embedding(self, tokens: TokenGrid, width: int) -> FourierCode:
        assert tokens.shape is not None
        rows, columns = tokens.shape
        return FourierCode((rows, columns), width, self.hidden, self.temperature)
