"""The walk of shared entries on a card: an entry's rows are multiplied once, its pairs are attention."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.ops.cards import capability_at
from models.ops.device import device_type, on_host
from models.ops.fused.arguments import sides_of
from models.ops.fused.bands import cost  # noqa: F401 (who counts this walk finds its costs)
from models.ops.fused.bands.operators import bands_backward, bands_forward, tile_numbers
from models.ops.fused.bands.tables import geometry_of, row_groups, row_tiles, rows_of, visits_of
from models.ops.fused.bands.tiles import BandTiles, choose_band_tiles
from models.ops.fused.tiles import MAX_HEAD_WIDTH, card_of
from models.ops.recipe import Operand, Recipe, workspace_bytes
from models.ops.walk.schedule import Schedule

MOST_NUMBERS = 2**31 - 1  # in a source, or in the rows of an operand: kernels index these by int32
MOST_DIMENSIONS = 3


class BandWalk:
    """Visits the pairs in about a dozen kernels, as many samples at a time as the workspace has room for
    their rows, at least one; bit-reproducible. Saves nothing of a pair's size, and `recipe.keep` the rows."""

    @staticmethod
    def why_not(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> str | None:
        """Why these kernels cannot serve this pass; None if they can."""
        return _why_not(recipe, schedule, sources, banks)

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        plan = _plan(recipe, schedule, sources, banks)
        lse, out, *kept = bands_forward(
            list(sources), list(banks), plan.tables, plan.operands, recipe.heads, recipe.scale, recipe.keep,
            plan.samples, plan.tiles,
        )  # fmt: skip
        return lse, [out], kept

    @staticmethod
    def backward(
        recipe: Recipe,
        schedule: Schedule,
        sources: Sequence[Tensor],
        banks: Sequence[Tensor],
        kept: Sequence[Tensor],
        lse: Tensor,
        delta: Tensor,
        grads: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        plan = _plan(recipe, schedule, sources, banks)
        gradients = bands_backward(
            list(sources), list(banks), list(kept), lse, delta, grads[0], plan.tables, plan.operands,
            recipe.scale, plan.whole, plan.samples, plan.tiles,
        )  # fmt: skip
        return gradients[: len(sources)], gradients[len(sources) :]


class Plan(NamedTuple):
    """The tables of a pass on its device, and the flat numbers that the operators take."""

    tables: list[Tensor]
    operands: list[int]
    samples: int
    whole: bool
    tiles: list[int]


def _plan(recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> Plan:
    operands = [n for o in _operands(recipe) for n in (o.source, -1 if o.bank is None else o.bank)]
    sides = sides_of(sources, banks, operands)
    source, B = sources[0], sources[0].shape[1]
    size, width = source.element_size(), sides.width
    rows = {side: len(order.run) for side, order in rows_of(schedule).items()}
    numbers = sum(
        width * rows["key" if i else "query"] for i, bank in enumerate(sides.banks) if bank is not None
    )
    workspace = workspace_bytes(recipe.workspace, device_type(source.device))
    cast = sum(bank.numel() * size for bank in banks if bank.dtype != source.dtype)
    most = (workspace - cast) // (2 * max(1, numbers) * size)
    most = min(most, MOST_NUMBERS // (max(1, *rows.values()) * width))
    parts = -(-B // min(B, max(1, most)))
    samples = -(-B // parts)
    tiles = choose_band_tiles(
        card_of(source.device), source.dtype, schedule, samples, recipe.heads, width // recipe.heads,
        sides.channels,
    )  # fmt: skip
    tables, whole = _tables(schedule, samples, tiles, source.device)
    return Plan(tables, operands, samples, whole, tile_numbers(tiles))


@lru_cache(maxsize=64)
@on_host
def _tables(
    schedule: Schedule, samples: int, tiles: BandTiles, device: torch.device
) -> tuple[list[Tensor], bool]:
    """The tables, and whether every entry has rows on both sides."""
    arrays: list[np.ndarray] = []
    whole = True
    for order in rows_of(schedule).values():
        groups = row_groups(order, tiles.tokens.rows // tiles.tokens.samples)
        entries = order.pairs.run_entry
        arrays += [order.pairs.query, order.pairs.run_start, entries]
        arrays += [*row_tiles(order, tiles.rows.rows, samples), *groups, np.ones_like(entries)]
        whole &= len(entries) == schedule.num_entries
    for visits in visits_of(schedule, tiles.attend.rows, tiles.attend.columns):
        arrays += visits
    arrays += geometry_of(schedule)
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays], whole


def _operands(recipe: Recipe) -> tuple[Operand, Operand, Operand]:
    ((q, k), *_), (v, *_) = recipe.logits, recipe.values
    return q, k, v


def _why_not(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> str | None:
    if len(recipe.logits) != 1 or len(recipe.values) != 1:
        return "more than one segment of logits or values (α-Translution)"
    source, dimensions = sources[0], len(schedule.grid.shape)
    if find_spec("triton") is None:
        return "triton is not installed"
    if device_type(source.device) == "cuda":
        if (capability_at(source.device) or (8, 0)) < (8, 0):
            return "compute capability 8.0 or more is needed"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        return f"a CUDA device is needed, the tensors are on {source.device.type}"
    if dimensions > MOST_DIMENSIONS:
        return f"grids of at most {MOST_DIMENSIONS} dimensions are needed, this one has {dimensions}"
    if any(s.dtype not in (torch.float32, torch.bfloat16, torch.float16) for s in sources):
        return f"float32, bfloat16 or float16 is needed, the sources are {source.dtype}"
    if len({s.dtype for s in sources}) > 1:
        return "sources of one dtype are needed"
    operands = _operands(recipe)
    widths = {(sources[o.source] if o.bank is None else banks[o.bank]).shape[2] for o in operands}
    if len(widths) > 1:
        return f"operands of one width are needed, not {sorted(widths)}"
    width = widths.pop() // recipe.heads
    if width > MAX_HEAD_WIDTH:
        return f"heads of at most {MAX_HEAD_WIDTH} are needed, they have {width}"
    channels = {sources[o.source].shape[2] for o in operands if o.bank is not None}
    if len(channels) > 1 or any(c % 8 for c in channels):
        return f"sources of one width, a multiple of 8, are needed, not {sorted(channels)}"
    widest = max([*channels, *(tensor.shape[2] for tensor in (*sources, *banks))])
    rows = max(len(order.run) for order in rows_of(schedule).values())
    if max(source.shape[0] * source.shape[1], rows) * widest > MOST_NUMBERS:
        return "sources and the rows of a sample of less than 2³¹ numbers are needed"
    return None
