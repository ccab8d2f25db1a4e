"""The walk of the fused kernels: full Translution with one segment of logits and one of values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.ops.cards import capability_at
from models.ops.device import device_type, on_host
from models.ops.fused import cost  # noqa: F401 (who counts this walk finds its costs)
from models.ops.fused.arguments import BackwardCut, ForwardCut, sides_of
from models.ops.fused.operators import fused_backward, fused_forward
from models.ops.fused.tables import order_pairs
from models.ops.fused.tiles import MAX_HEAD_WIDTH, Tiles, card_of, choose_tiles
from models.ops.recipe import Recipe
from models.ops.walk.schedule import Schedule

WORKSPACE = 1 << 30  # bytes, unless the recipe has a limit
MOST_NUMBERS = 2**31 - 1  # in a source, or in an operand's gradients of a class: kernels index these by int32


class FusedWalk:
    """Visits the pairs in few kernels that keep q, k and v on the chip; bit-reproducible.

    Forward is one launch, or a few where banks are cast to the sources' dtype chunk by chunk. Backward
    takes a chunk of classes at a time: the workspace holds the chunk's ∂q, ∂k and ∂v, one class at least, and
    the sums of sources' gradients.
    """

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
        lse, out, *kept = fused_forward(
            list(sources),
            list(banks),
            plan.forward_tables,
            _operands(recipe),
            recipe.heads,
            recipe.scale,
            recipe.keep,
            plan.forward_cuts,
            plan.forward_tiles,
        )
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
        gradients = fused_backward(
            list(sources),
            list(banks),
            list(kept),
            lse,
            delta,
            grads[0],
            plan.backward_tables,
            _operands(recipe),
            recipe.scale,
            plan.spans,
            plan.backward_cuts,
            plan.backward_tiles,
        )
        return gradients[: len(sources)], gradients[len(sources) :]


class Plan(NamedTuple):
    """The tables of a pass on its device, and the flat numbers that the operators take."""

    forward_tables: list[Tensor]
    forward_cuts: list[int]
    forward_tiles: list[int]
    backward_tables: list[Tensor]
    backward_cuts: list[int]
    backward_tiles: list[int]
    spans: bool


def _operands(recipe: Recipe) -> list[int]:
    (q, k), v = recipe.logits[0], recipe.values[0]
    return [number for o in (q, k, v) for number in (o.source, -1 if o.bank is None else o.bank)]


def _plan(recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> Plan:
    sides = sides_of(sources, banks, _operands(recipe))
    source, batch, size = sources[0], sources[0].shape[1], sources[0].element_size()
    tiles = choose_tiles(
        card_of(source.device),
        source.dtype,
        schedule.grid.shape,
        batch,
        recipe.heads,
        sides.width // recipe.heads,
        sides.channels or sides.width,
    )
    entry_bytes = sum(bank.shape[1] * bank.shape[2] for bank in banks) * size
    if all(bank.dtype == source.dtype for bank in banks):
        entry_bytes = 0  # none is cast
    workspace = WORKSPACE if recipe.workspace is None else recipe.workspace
    sums = sum(4 * source.numel() for source in sources)  # of ∂sources, which backward holds beside a chunk
    workspace -= min(sums, workspace // 2)
    return _tables(schedule, batch, sides.width, size, entry_bytes, workspace, tiles, source.device)


@lru_cache(maxsize=64)
@on_host
def _tables(
    schedule: Schedule,
    batch: int,
    width: int,
    size: int,
    entry_bytes: int,
    workspace: int,
    tiles: Tiles,
    device: torch.device,
) -> Plan:
    """For operands of B samples of D numbers of `size` bytes; entry_bytes: an entry's casts, all banks'."""
    ratio = max((len(blocks) / sum(b.pairs for b in blocks) for blocks in schedule.classes), default=0.0)
    pair_bytes = 3 * batch * width * size + ratio * entry_bytes
    runs = workspace // entry_bytes if entry_bytes else None
    chunk_pairs = min(int(workspace / pair_bytes), MOST_NUMBERS // (batch * width))
    order = order_pairs(schedule, chunk_pairs, int(ratio * chunk_pairs) if entry_bytes else None)
    pairs = order.pairs

    def moved(*tables: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(table)).to(device) for table in tables]

    sizes = [tile.rows // tile.samples for tile in (tiles.attend, tiles.tokens)]
    ahead, ahead_steps = order.groups("query", sizes[0])
    by_query, query_steps = order.groups("query", sizes[1])
    by_key, key_steps = order.groups("key", sizes[1])
    pair_tiles, tile_starts = order.tiles(tiles.pairs.rows, batch)
    chunks = list(zip(order.chunk_pairs, order.chunk_runs, tile_starts, query_steps, key_steps, strict=True))
    launches = [(c, order.chunk_runs[c], ahead_steps[c]) for c in _forward_chunks(order.chunk_runs, runs)]
    return Plan(
        moved(*ahead, pairs.key, pairs.run_entry),
        [n for launch in launches for n in ForwardCut(*launch)],
        [*tiles.attend],
        moved(*pairs, *pair_tiles, *by_query, *by_key),
        [n for chunk in chunks for n in BackwardCut(*chunk)],
        [*tiles.pairs, *tiles.banks, *tiles.tokens],
        order.spans_chunks,
    )


def _forward_chunks(chunk_runs: Sequence[int], limit: int | None) -> list[int]:
    """The chunks at which forward's launches begin, and the end: `limit` runs a launch, or one chunk's."""
    starts, end = [0], len(chunk_runs) - 1
    if limit is not None:
        for chunk, (_, stop) in enumerate(pairwise(chunk_runs)):
            if chunk > starts[-1] and stop - chunk_runs[starts[-1]] > limit:
                starts.append(chunk)
    return [*starts, end] if end else [0, 0]


def _why_not(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> str | None:
    if len(recipe.logits) != 1 or len(recipe.values) != 1:
        return "more than one segment of logits or values (α-Translution)"
    source = sources[0]
    if find_spec("triton") is None:
        return "triton is not installed"
    if device_type(source.device) == "cuda":
        if (capability_at(source.device) or (8, 0)) < (8, 0):
            return "compute capability 8.0 or more is needed"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        return f"a CUDA device is needed, the tensors are on {source.device.type}"
    if any(s.dtype not in (torch.float32, torch.bfloat16, torch.float16) for s in sources):
        return f"float32, bfloat16 or float16 is needed, the sources are {source.dtype}"
    if len({s.dtype for s in sources}) > 1:
        return "sources of one dtype are needed"
    if any(b.dtype not in (torch.float32, source.dtype) for b in banks):
        return "banks in float32 or the sources' dtype are needed"
    (q, k), v = recipe.logits[0], recipe.values[0]
    widths = {(sources[o.source] if o.bank is None else banks[o.bank]).shape[2] for o in (q, k, v)}
    if len(widths) > 1:
        return f"operands of one width are needed, not {sorted(widths)}"
    width = widths.pop() // recipe.heads
    if width > MAX_HEAD_WIDTH:
        return f"heads of at most {MAX_HEAD_WIDTH} are needed, they have {width}"
    channels = {sources[o.source].shape[2] for o in (q, k, v) if o.bank is not None}
    if len(channels) > 1 or any(c % 8 for c in channels):
        return f"sources of one width, a multiple of 8, are needed, not {sorted(channels)}"
    widest = max([*channels, *(tensor.shape[2] for tensor in (*sources, *banks))])
    if source.shape[0] * source.shape[1] * widest > MOST_NUMBERS:
        return "sources and gradients of less than 2³¹ numbers are needed"
    return None
