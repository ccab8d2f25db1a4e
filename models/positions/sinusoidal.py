"""Fixed sines and cosines of the positions, added once to the tokens (arXiv 1706.03762, section 3.5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class Sinusoids(nn.Module):
    """positions[1, N, C]: channel 2i is sin(p/10000^(2i/C)), channel 2i + 1 the cosine, p from 0.

    Each dimension of a grid has an equal part of the channels, rows first; a class token has zeros.
    """

    def __init__(self, tokens: TokenGrid, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width

    def forward(self, x_BNC: Tensor) -> Tensor:
        assert self.tokens.shape is not None
        part = self.width // len(self.tokens.shape)
        exponent = torch.arange(0, part, 2, device=x_BNC.device, dtype=torch.float64) / part
        codes = []
        for n in self.tokens.shape:
            angle = torch.arange(n, device=x_BNC.device, dtype=torch.float64)[:, None] * 10_000.0**-exponent
            codes.append(torch.stack((angle.sin(), angle.cos()), -1).flatten(1))  # [n, part]
        places = torch.meshgrid(
            *(torch.arange(n, device=x_BNC.device) for n in self.tokens.shape), indexing="ij"
        )
        code_NC = torch.cat([code[p.flatten()] for code, p in zip(codes, places, strict=True)], -1)
        if self.tokens.class_token:
            code_NC = torch.cat((code_NC.new_zeros(1, self.width), code_NC))
        return code_NC.to(x_BNC.dtype)[None]


class SinusoidalPosition(PositionConfig):
    """Sines and cosines of every coordinate, added before the first layer."""

    kind: Literal["sinusoidal"] = "sinusoidal"

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        if tokens.shape is None:
            return "tokens have no grid here"
        if width % (2 * len(tokens.shape)):
            return f"width {width} is no multiple of {2 * len(tokens.shape)}, for sines and cosines"
        return None

    def embedding(self, tokens: TokenGrid, width: int) -> Sinusoids:
        return Sinusoids(tokens, width)
