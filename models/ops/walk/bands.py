"""Attention inside a band of offsets whose pairs share a bank entry.

Queries and keys are rows of two rectangles, multiplied once each however many pairs they are in. The
pairs are ordinary attention, a tile at a time, merged into the running softmax of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.offsets import Block
from models.ops.device import device_type
from models.ops.recipe import Recipe
from models.ops.walk.chunks import BlockChunk
from models.ops.walk.rows import Tokens
from models.ops.walk.stage import Projected, Scratch
from models.ops.walk.tiles import Sides, Tile, Tiling, mask, tiling

LEAST_LOG = {torch.float32: -87.0, torch.float64: -708.0}  # of a normal number


class BandChunk(BlockChunk):
    """The pairs of one entry."""

    def attend(self, recipe: Recipe, projected: Projected, state: list[Tokens], scratch: Scratch) -> None:
        tiles = _tiling_of(self.block, projected)
        lse, *outs = (_head_major(self.queries(t), tiles) for t in state)
        operands = Projected(*([_head_major(t, tiles) for t in segments] for segments in projected))
        for tile in tiles.tiles:
            q_tile, k_tile, v_tile = _cut(operands, tile, tiles, lse.dtype)
            old, *old_outs = (_queries(t, tile, tiles) for t in (lse, *outs))
            p = _logits(q_tile, k_tile, recipe.scale, tile, scratch)
            highest = torch.maximum(p.amax(-1).view(old.shape), old)
            p = _exp(p.sub_(highest.reshape(p.shape[0], -1, 1)))
            keep = (old - highest).exp_()
            total = p.sum(-1).view(old.shape).add_(keep)
            keep, new = keep.div_(total).unsqueeze(-1), total.reciprocal().unsqueeze(-1)
            for out, value in zip(old_outs, v_tile, strict=True):
                added = torch.bmm(p, value).view(out.shape)
                out.mul_(keep).addcmul_(added, new)
            torch.add(highest, total.log_(), out=old)

    def gradients(
        self, recipe: Recipe, projected: Projected, state: list[Tokens], scratch: Scratch
    ) -> Projected:
        q, k, v = projected
        tiles = _tiling_of(self.block, projected)
        lse, delta, *grad_outs = (_head_major(self.rows("query", t), tiles) for t in state)
        operands = Projected(*([_head_major(t, tiles) for t in segments] for segments in projected))
        grad_q = [
            t if query.bank is not None and not recipe.keep else scratch(("∂q", i), tuple(t.shape))
            for i, (t, (query, _)) in enumerate(zip(q, recipe.logits, strict=True))
        ]  # overwrites q, tile by tile, where it is not needed any more
        grad_k, grad_v = (
            [scratch((name, i), tuple(t.shape)).zero_() for i, t in enumerate(segments)]
            for name, segments in (("q'", k), ("∂v", v))  # a buffer that the element-wise stage has anyway
        )
        to_q, to_k, to_v = ([_head_major(t, tiles) for t in grads] for grads in (grad_q, grad_k, grad_v))
        for tile in tiles.tiles:
            q_tile, k_tile, v_tile = _cut(operands, tile, tiles, lse.dtype)
            p = _logits(q_tile, k_tile, recipe.scale, tile, scratch)
            p = _exp(p.sub_(_queries(lse, tile, tiles).reshape(p.shape[0], -1, 1)))
            grad_a = scratch("∂p", tuple(p.shape), p.dtype)
            g_tile = [_matrices(_queries(g, tile, tiles), tile, tiles, p.dtype) for g in grad_outs]
            for i, (g, value) in enumerate(zip(g_tile, v_tile, strict=True)):
                torch.baddbmm(grad_a, g, value.mT, beta=int(i > 0), out=grad_a)
            grad_a.sub_(_queries(delta, tile, tiles).reshape(p.shape[0], -1, 1)).mul_(p).mul_(recipe.scale)
            for grad, query in zip(to_k, q_tile, strict=True):
                _add_to_keys(grad, torch.bmm(grad_a.mT, query), tile, tiles)
            for grad, key in zip(to_q, k_tile, strict=True):
                here = _queries(grad, tile, tiles)
                here.copy_(torch.bmm(grad_a, key).view(here.shape))
            for grad, g in zip(to_v, g_tile, strict=True):
                _add_to_keys(grad, torch.bmm(p.mT, g), tile, tiles)
        return Projected(grad_q, grad_k, grad_v)


def _tiling_of(block: Block, projected: Projected) -> Tiling:
    q = projected.q[0]
    return tiling(block, q.shape[-3] * q.shape[-2], device_type(q.device))


def _cut(operands: Projected, tile: Tile, tiles: Tiling, dtype: torch.dtype) -> Projected:
    """The rows of a tile, [batch, rows, E], of head-major operands, in the dtype of the statistics."""
    return Projected(
        [_matrices(_queries(t, tile, tiles), tile, tiles, dtype) for t in operands.q],
        *(
            [_matrices(_keys(t, tile, tiles), tile, tiles, dtype) for t in segments]
            for segments in (operands.k, operands.v)
        ),
    )


def _logits(q: list[Tensor], k: list[Tensor], scale: float, tile: Tile, scratch: Scratch) -> Tensor:
    """scale · Σ ⟨q, k⟩ over the segments, −inf outside the band; [groups·B·H, queries, keys]."""
    shape = (q[0].shape[0], q[0].shape[1], k[0].shape[1])
    a = scratch("p", shape, q[0].dtype)
    for i, (query, key) in enumerate(zip(q, k, strict=True)):
        torch.baddbmm(a, query, key.mT, beta=int(i > 0), alpha=scale, out=a)
    for keys, geometry in tile.masked:
        a[:, :, keys].add_(mask(geometry, a.dtype, a.device))
    return a


def _head_major(t: Tensor, tiles: Tiling) -> Tensor:
    """A view of [*rectangle, B, H, …] as [*groups, B, H, *banded, …]."""
    rank = len(tiles.groups) + len(tiles.banded)
    order = (*tiles.groups, rank, rank + 1, *tiles.banded, *range(rank + 2, t.dim()))
    return t.permute(order)


def _part(head_major: Tensor, sides: Sides) -> Tensor:
    for dim, start, length in sides:
        head_major = head_major.narrow(dim, start, length)
    return head_major


def _queries(head_major: Tensor, tile: Tile, tiles: Tiling) -> Tensor:
    """The tile's part of a query side, [*groups, B, H, (repeats,) *banded, …]."""
    part = _part(head_major, tile.queries)
    return part.unflatten(len(tiles.groups) + 2, (tile.repeats, -1)) if tile.repeats > 1 else part


def _keys(head_major: Tensor, tile: Tile, tiles: Tiling) -> Tensor:
    """The tile's windows of a key side, [*groups, B, H, (repeats,) *banded, E]."""
    part, dim = _part(head_major, tile.keys), len(tiles.groups) + 2
    return part.unfold(dim, tile.length[1], tile.length[0]).mT if tile.repeats > 1 else part


def _add_to_keys(head_major: Tensor, windows: Tensor, tile: Tile, tiles: Tiling) -> None:
    """Adds a gradient [batch, keys, E] to the keys of each window; windows may overlap."""
    part, dim = _part(head_major, tile.keys), len(tiles.groups) + 2
    if tile.repeats == 1:
        part.add_(windows.view(part.shape))
        return
    length, window = tile.length
    windows = windows.view(*part.shape[:dim], tile.repeats, window, part.shape[-1])
    for start in range(0, window, length):
        piece = windows.narrow(dim + 1, start, min(length, window - start))
        size = piece.shape[dim + 1]
        disjoint = part.narrow(dim, start, (tile.repeats - 1) * length + size).unfold(dim, size, length)
        disjoint.mT.add_(piece)


def _matrices(part: Tensor, tile: Tile, tiles: Tiling, dtype: torch.dtype) -> Tensor:
    """[*groups, B, H, (repeats,) *banded, E] as [batch, rows, E]; copied where it is no view."""
    batch = part.shape[: len(tiles.groups) + 2 + (tile.repeats > 1)].numel()
    return part.reshape(batch, -1, part.shape[-1]).to(dtype)


def _exp(a: Tensor) -> Tensor:
    """e^a in place, with the least normal number in place of less: denormal numbers take 30 times as long."""
    return a.clamp_min_(LEAST_LOG[a.dtype]).exp_()
