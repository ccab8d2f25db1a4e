"""Records what the fused operators would launch, on meta tensors: needs neither a card nor the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from models.offsets import OffsetGrid
from models.ops.fused import operators, walk
from models.ops.fused.walk import FusedWalk
from models.ops.recipe import Operand, Recipe
from models.ops.walk.schedule import whole_schedule


@dataclass(frozen=True)
class Launch:
    module: str
    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, int]


class Kernel:
    def __init__(self, launches: list[Launch], module: str, name: str) -> None:
        self._launches, self._module, self._name = launches, module, name

    def __getitem__(self, grid):
        return lambda *arguments, **options: self._launches.append(
            Launch(self._module, self._name, grid, arguments, options)
        )


@contextmanager
def recorded(card: str = "hopper") -> Iterator[list[Launch]]:
    """The launches of FusedWalk's passes inside this context, planned for `card`."""
    launches: list[Launch] = []
    with (
        mock.patch.object(operators, "_kernel", lambda module, name: Kernel(launches, module, name)),
        mock.patch.object(walk, "card_of", return_value=card),
        mock.patch.object(walk, "fused_forward", operators.fused_forward._init_fn),
        mock.patch.object(walk, "fused_backward", operators.fused_backward._init_fn),
    ):
        yield launches


def full_translution(
    grid: OffsetGrid, batch: int, channels: int, head_dim: int = 64, bank_dtype: torch.dtype = torch.bfloat16
):
    """Recipe, schedule, sources and banks of full Translution of width C = D, on the meta device."""
    x = torch.empty(grid.num_tokens, batch, channels, dtype=torch.bfloat16, device="meta")
    shape = (grid.num_entries, channels, channels)
    banks = [torch.empty(shape, dtype=bank_dtype, device="meta") for _ in "qkv"]
    q, k, v = (Operand(0, bank) for bank in range(3))
    recipe = Recipe(((q, k),), (v,), channels // head_dim, head_dim**-0.5, workspace=1 << 30)
    return recipe, whole_schedule(grid, in_bands=False), [x], banks


def both_passes(recipe, schedule, sources, banks) -> None:
    lse, outs, kept = FusedWalk.forward(recipe, schedule, sources, banks)
    FusedWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [outs[0].to(sources[0].dtype)])
