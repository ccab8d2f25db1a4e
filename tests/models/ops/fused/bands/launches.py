"""Records what the operators of bands would launch, on meta tensors: needs neither a card nor the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from models.offsets import OffsetGrid
from models.ops.fused.bands import operators, walk
from models.ops.fused.bands.walk import BandWalk
from models.ops.recipe import Operand, Recipe
from models.ops.walk.schedule import whole_schedule
from tests.models.ops.fused.launches import Kernel, Launch


@contextmanager
def recorded(card: str = "hopper") -> Iterator[list[Launch]]:
    """The launches of BandWalk's passes inside this context, planned for `card`."""
    launches: list[Launch] = []
    with (
        mock.patch.object(operators, "_kernel", lambda module, name: Kernel(launches, module, name)),
        mock.patch.object(walk, "card_of", return_value=card),
        mock.patch.object(walk, "bands_forward", operators.bands_forward._init_fn),
        mock.patch.object(walk, "bands_backward", operators.bands_backward._init_fn),
    ):
        yield launches


def shared_layer(
    grid: OffsetGrid,
    batch: int,
    channels: int,
    head_dim: int = 64,
    relative: str = "qkv",
    dtype: torch.dtype = torch.bfloat16,
):
    """Recipe, schedule, sources and (float32) banks of Translution of width C = D, on the meta device."""
    shape = (grid.num_tokens, batch, channels)
    shared = [name for name in "qkv" if name not in relative]
    sources = [torch.empty(shape, dtype=dtype, device="meta") for _ in ("x", *shared)]
    banks = [torch.empty(grid.num_entries, channels, channels, device="meta") for _ in relative]
    q, k, v = (
        Operand(0, relative.index(name)) if name in relative else Operand(1 + shared.index(name))
        for name in "qkv"
    )
    recipe = Recipe(((q, k),), (v,), channels // head_dim, head_dim**-0.5, workspace=1 << 30)
    return recipe, whole_schedule(grid, row_work=1e6), sources, banks


def both_passes(recipe, schedule, sources, banks) -> None:
    lse, outs, kept = BandWalk.forward(recipe, schedule, sources, banks)
    BandWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [outs[0].to(sources[0].dtype)])
