"""The fused pass as two operators of torch.library, with the launches of their kernels.

They take flat lists (see arguments.py): `operands` are (source, bank) of q, k and v, −1 for no bank; `cuts`
hold a `ForwardCut` or `BackwardCut` for each boundary between launches; `tiles` are the `Tile` of each
kernel, and `tables` are `ForwardTables` or `BackwardTables`.
"""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from models.ops.fused.arguments import (
    BackwardCut,
    BackwardTables,
    ForwardCut,
    ForwardTables,
    Sides,
    bank_products,
    sides_of,
    token_products,
    unflatten_cuts,
    unflatten_tiles,
)
from models.ops.fused.tiles import padded_width


@torch.library.custom_op("translution::fused_forward", mutates_args=())
def fused_forward(
    sources: list[Tensor],
    banks: list[Tensor],
    tables: list[Tensor],
    operands: list[int],
    heads: int,
    scale: float,
    keep: bool,
    cuts: list[int],
    tiles: list[int],
) -> list[Tensor]:
    """lse [N, B, H], out [N, B, H, E], and with `keep` the projected ones of q, k, v, [pairs, B, H, E]."""
    attend = _kernel("forward", "attend")
    sources = [source.contiguous() for source in sources]
    sides, table, (tile, *_) = (
        sides_of(sources, banks, operands),
        ForwardTables(*tables),
        unflatten_tiles(tiles),
    )
    lse, out, *kept = _forward_results(sides, table, heads, keep)
    (B, H), E = lse.shape[1:], sides.width // heads
    head = padded_width(E)
    stored = iter(kept)
    kept_qkv = [next(stored, lse) if keep and bank is not None else lse for bank in sides.banks]
    grid = (len(table.tokens), H * head // tile.columns, math.ceil(B / tile.samples))
    casts = Casts(sides, table.run_entry)
    for start, stop in pairwise(unflatten_cuts(ForwardCut, cuts)):
        attend[grid](
            *sides.sources, *casts.of_runs(start.run, stop.run), *table, *kept_qkv, lse, out,
            B, len(table.tokens), start.chunk, stop.chunk, start.run, scale, sides.channels, sides.channels,
            H, E, *_banked(sides), bool(tile.joint) and sides.share, casts.needed, keep, start.chunk > 0,
            tile.columns // head, head, tile.rows // tile.samples, tile.samples, tile.inner,
            precision(sources[0]), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return [lse, out, *kept]


@fused_forward.register_fake
def _(sources, banks, tables, operands, heads, scale, keep, cuts, tiles):
    return _forward_results(sides_of(sources, banks, operands), ForwardTables(*tables), heads, keep)


def _forward_results(sides: Sides, table: ForwardTables, heads: int, keep: bool) -> list[Tensor]:
    N, B = sides.sources[0].shape[:2]
    source, E = sides.sources[0], sides.width // heads
    results = [source.new_empty((N, B, heads), dtype=torch.float32)]
    results.append(source.new_empty((N, B, heads, E), dtype=torch.float32))
    if keep:
        shape = (len(table.key), B, heads, E)
        results += [source.new_empty(shape) for bank in sides.banks if bank is not None]
    return results


@torch.library.custom_op("translution::fused_backward", mutates_args=())
def fused_backward(
    sources: list[Tensor],
    banks: list[Tensor],
    kept: list[Tensor],
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    tables: list[Tensor],
    operands: list[int],
    scale: float,
    spans: bool,
    cuts: list[int],
    tiles: list[int],
) -> list[Tensor]:
    """∂sources [N, B, C], float32, then ∂banks [K, C, D]; `spans`: an entry may occur in several chunks."""
    names = ("pair_gradients", "bank_gradients", "token_gradients")
    pair_gradients, bank_gradients, token_gradients = (_kernel("backward", name) for name in names)
    sources = [source.contiguous() for source in sources]
    lse, delta, grad = lse.contiguous(), delta.contiguous(), grad.contiguous()
    sides, table = sides_of(sources, banks, operands), BackwardTables(*tables)
    tile, bank_tile, token_tile = unflatten_tiles(tiles)
    chunks = unflatten_cuts(BackwardCut, cuts)
    (B, H), D, exact = lse.shape[1:], sides.width, precision(sources[0])
    head, E = padded_width(D // H), D // H
    grad_sources = [torch.zeros_like(source, dtype=torch.float32) for source in sources]
    whole = not spans and len(table.run_entry) == len(banks[0] if banks else ())
    new = torch.empty_like if whole else torch.zeros_like
    grad_banks = [new(bank, dtype=torch.float32 if spans else bank.dtype) for bank in banks]
    most = max((stop.pair - start.pair for start, stop in pairwise(chunks)), default=0)
    grads = sources[0].new_empty((3, most, B, D))  # ∂q, ∂k, ∂v of a chunk's pairs
    outputs = [lse if b < 0 else grad_banks[b] for b in operands[1::2]]
    stored = iter(kept)
    kept_qkv = [next(stored, lse) if kept and bank is not None else lse for bank in sides.banks]
    casts = Casts(sides, table.run_entry)
    for number, (start, stop) in enumerate(pairwise(chunks)):
        runs = stop.run - start.run
        entries = casts.of_runs(start.run, stop.run)
        pair_gradients[stop.tile - start.tile, H * head // tile.columns](
            *sides.sources, *entries, *kept_qkv, table.query, table.key, table.run_start, table.run_entry,
            table.tile_run, table.tile_first, lse, delta, grad, *grads,
            B, start.tile, start.pair, start.run, scale, sides.channels, sides.channels, H, E,
            *_banked(sides), bool(tile.joint) and sides.share and not kept, casts.needed, bool(kept),
            bool(tile.again), tile.columns // head, head, tile.rows, tile.inner, exact,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        for source, parts in bank_products(sides):
            blocks = math.ceil(sides.channels / bank_tile.rows) * math.ceil(D / bank_tile.columns)
            bank_gradients[blocks, runs, len(parts)](
                source, grads, table.query, table.key, table.run_start, table.run_entry, table.run_again,
                *outputs, B, most * B, start.pair, start.run,
                *(parts * 3)[:3], sides.channels, D, spans, *bank_tile[:3], exact,
                num_warps=bank_tile.warps, num_stages=bank_tile.stages,
            )  # fmt: skip
        for first, second in token_products(sides):
            C = sides.sources[first].shape[2]
            groups = table[7:11] if first == 0 else table[11:15]
            last = first if second is None else second
            blocks = (math.ceil(C / token_tile.columns), math.ceil(B / token_tile.samples))
            token_gradients[len(groups[0]), *blocks](
                grads[first], grads[last], entries[first], entries[last], *groups, table.run_entry,
                grad_sources[operands[2 * first]], B, len(groups[0]), number, start.pair, start.run, D,
                C, D, sides.banks[first] is not None, second is not None, casts.needed,
                token_tile.rows // token_tile.samples, token_tile.samples, *token_tile[1:3], exact,
                num_warps=token_tile.warps, num_stages=token_tile.stages,
            )  # fmt: skip
    return grad_sources + [g.to(bank.dtype) for g, bank in zip(grad_banks, banks, strict=True)]


@fused_backward.register_fake
def _(sources, banks, kept, lse, delta, grad, tables, operands, scale, spans, cuts, tiles):
    grad_sources = [torch.empty_like(source, dtype=torch.float32) for source in sources]
    return grad_sources + [torch.empty_like(bank) for bank in banks]


def precision(source: Tensor) -> str:
    """Of the products of float32 sources."""
    tf32 = source.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _kernel(module: str, name: str) -> Any:
    """A Triton kernel, imported at its first launch: who launches none needs no triton."""
    return getattr(import_module(f"models.ops.fused.{module}"), name)


def _banked(sides: Sides) -> list[bool]:
    return [bank is not None for bank in sides.banks]


class Casts:
    """The entries that a launch needs, in the sources' dtype: the banks, or a cast of its runs' entries."""

    def __init__(self, sides: Sides, run_entry: Tensor) -> None:
        self._sides, self._run_entry = sides, run_entry
        self._dtype = sides.sources[0].dtype
        self.needed = any(bank is not None and bank.dtype != self._dtype for bank in sides.banks)
        self._buffers: dict[int, Tensor] = {}

    def of_runs(self, start: int, stop: int) -> list[Tensor]:
        """For each operand its bank, or if `needed` the entries of the runs from `start` to `stop`; any
        tensor for an operand without."""
        if not self.needed:
            return [source if bank is None else bank for source, bank in zip(*self._sides[:2], strict=True)]
        cast_entries = _kernel("forward", "cast_entries")
        entries, block = [], 4096
        for i, bank in enumerate(self._sides.banks):
            if bank is None:
                entries.append(self._sides.sources[i])
                continue
            size = bank[0].numel()
            if i not in self._buffers or len(self._buffers[i]) < stop - start:
                self._buffers[i] = bank.new_empty((stop - start, *bank.shape[1:]), dtype=self._dtype)
            if stop > start:
                cast_entries[math.ceil(size / block), stop - start](
                    bank, self._run_entry, self._buffers[i], start, size, block
                )
            entries.append(self._buffers[i])
        return entries
