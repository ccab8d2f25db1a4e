"""Rotary positions on an N-dimensional grid (arXiv 2104.09864; one equal part of the head per dimension)."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.offsets import OffsetGrid
from models.positions.attend import Attend
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class Rope(nn.Module):
    """Rotates queries or keys [N, B, H, E] by their grid position; a class token stays as it is.

    The frequencies of all grid dimensions lie side by side in one half of the head, and channel e is
    rotated with channel e + E/2. Raises ValueError unless E is a multiple of twice the dimensions.
    """

    def __init__(self, grid: OffsetGrid, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        dims = len(grid.shape)
        if head_dim % (2 * dims):
            raise ValueError(f"head_dim {head_dim}: rope on {dims} dimensions needs a multiple of {2 * dims}")
        self.grid, self.head_dim, self.base = grid, head_dim, base

    def forward(self, x_NBHE: Tensor, first: int = 0) -> Tensor:
        """x of the tokens from `first` on."""
        # Only plain tensors are kept: not those of a fake device, nor of inference mode.
        kept = type(x_NBHE) is Tensor and not x_NBHE.is_meta and not torch.is_inference_mode_enabled()
        tables = _tables if kept else _tables.__wrapped__
        shape, class_token = self.grid.shape, self.grid.class_token
        cos, sin = tables(shape, class_token, self.head_dim, self.base, x_NBHE.device, x_NBHE.dtype)
        cos, sin = (table[first : first + len(x_NBHE)] for table in (cos, sin))
        left, right = x_NBHE.chunk(2, -1)
        return x_NBHE * cos + torch.cat((-right, left), -1) * sin

    def angle(self, device: torch.device) -> Tensor:
        """angle[N, E] in float64, zero for the class token."""
        return _angle(self.grid.shape, self.grid.class_token, self.head_dim, self.base, device)


@functools.lru_cache(maxsize=32)
def _tables(
    shape: tuple[int, ...],
    class_token: bool,
    head_dim: int,
    base: float,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, 1, 1, E], once for all layers of a net."""
    angle = _angle(shape, class_token, head_dim, base, device)  # itself too large for bfloat16
    return angle.cos().to(dtype)[:, None, None], angle.sin().to(dtype)[:, None, None]


def _angle(
    shape: tuple[int, ...], class_token: bool, head_dim: int, base: float, device: torch.device
) -> Tensor:
    dims = len(shape)
    width = head_dim // dims
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
    axes = [torch.arange(n, device=device, dtype=torch.float64) for n in shape]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, dims, 1)
    half = (position * base**-exponent).flatten(1)  # [grid tokens, E/2]
    angle = torch.cat((half, half), -1)
    return torch.cat((angle.new_zeros(1, head_dim), angle)) if class_token else angle


class RotatedAttend(Attend):
    """Attention whose queries and keys are rotated first."""

    def __init__(self, rope: Rope, causal: bool) -> None:
        super().__init__(causal)
        self.rope = rope

    def rotated(self, q_BHNE: Tensor, k_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        return self.placed(q_BHNE, 0), self.placed(k_BHNE, 0)

    def placed(self, rows_BHnE: Tensor, first: int) -> Tensor:
        return self.rope(rows_BHnE.permute(2, 0, 1, 3), first).permute(1, 2, 0, 3)


class RopePosition(PositionConfig):
    """Mixers rotate queries and keys; nothing is added to the tokens.

    base  of the wavelengths: the longest is about 2π·base tokens
    """

    kind: Literal["rope"] = "rope"
    base: float = Field(default=10_000.0, gt=1)

    @property
    def inside_mixer(self) -> bool:
        return True

    @property
    def rotates(self) -> bool:
        return True

    def refuses(self, tokens: TokenGrid, width: int) -> str | None:
        return f"it knows places on a grid, not {tokens.where}" if tokens.shape is None else None

    def rotation(self, grid: OffsetGrid, head_dim: int) -> Rope:
        return Rope(grid, head_dim, self.base)

    def attend(self, tokens: TokenGrid, heads: int, head_dim: int) -> RotatedAttend:
        return RotatedAttend(self.rotation(tokens.offsets(), head_dim), tokens.causal)
