"""Modules that treat latents and tokens apart, or the latents alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sides(nn.Module):
    """x[B, M + N, C] → the same: one module for the M latents, another for the tokens (None gives zeros)."""

    def __init__(self, num_latents: int, latents: nn.Module, tokens: nn.Module | None) -> None:
        super().__init__()
        self.num_latents, self.latents, self.tokens = num_latents, latents, tokens

    def forward(self, x_BNC: Tensor) -> Tensor:
        latents, tokens = x_BNC[:, : self.num_latents], x_BNC[:, self.num_latents :]
        latents = self.latents(latents)
        tokens = torch.zeros_like(tokens, dtype=latents.dtype) if self.tokens is None else self.tokens(tokens)
        return torch.cat((latents, tokens), 1)
