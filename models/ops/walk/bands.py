"""Attention inside a band of offsets whose pairs share a bank entry.

Queries and keys are rows of two rectangles, multiplied once each however many pairs they are in. The
pairs are ordinary attention, a tile at a time, merged into the running softmax of the queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.ops.recipe import Recipe
from models.ops.walk.chunks import BlockChunk
from models.ops.walk.rows import Tokens
from models.ops.walk.stage import Scratch
from models.ops.walk.tiles import Sides, Tile, Tiling, mask, tiling

LEAST_LOG = {torch.float32: -87.0, torch.float64: -708.0}  # of a normal number


class BandChunk(BlockChunk):
    """The pairs of one entry."""

    def attend(
        self,
        recipe: Recipe,
        q: list[Tensor],
        k: list[Tensor],
        v: list[Tensor],
        state: list[Tokens],
        scratch: Scratch,
    ) -> None:
        tiles = tiling(self.block, q[0].shape[-3] * q[0].shape[-2])
        lse, *outs = (_head_major(self.queries(t), tiles) for t in state)
        operands = _Operands.of(q, k, v, tiles)
        for tile in tiles.tiles:
            q_tile, k_tile, v_tile = operands.cut(tiles, tile, lse.dtype)
            old, *old_outs = (_part(t, tile.queries) for t in (lse, *outs))
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
        self,
        recipe: Recipe,
        q: list[Tensor],
        k: list[Tensor],
        v: list[Tensor],
        state: list[Tokens],
        scratch: Scratch,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        tiles = tiling(self.block, q[0].shape[-3] * q[0].shape[-2])
        lse, delta, *grad_outs = (_head_major(self.rows("query", t), tiles) for t in state)
        operands = _Operands.of(q, k, v, tiles)
        grads = [
            [scratch((name, i), tuple(t.shape)) for i, t in enumerate(segments)]
            for name, segments in (("∂q", q), ("∂k", k), ("∂v", v))
        ]
        for grad in (*grads[1], *grads[2]):
            grad.zero_()
        grad_q, grad_k, grad_v = ([_head_major(t, tiles) for t in segments] for segments in grads)
        for tile in tiles.tiles:
            q_tile, k_tile, v_tile = operands.cut(tiles, tile, lse.dtype)
            p = _logits(q_tile, k_tile, recipe.scale, tile, scratch)
            p = _exp(p.sub_(_part(lse, tile.queries).reshape(p.shape[0], -1, 1)))
            grad_a = scratch("∂p", tuple(p.shape), p.dtype)
            g_tile = [_rows(g, tiles, tile.queries, p.dtype) for g in grad_outs]
            for i, (g, value) in enumerate(zip(g_tile, v_tile, strict=True)):
                torch.baddbmm(grad_a, g, value.mT, beta=int(i > 0), out=grad_a)
            grad_a.sub_(_part(delta, tile.queries).reshape(p.shape[0], -1, 1)).mul_(p).mul_(recipe.scale)
            for grad, key in zip(grad_q, k_tile, strict=True):
                here = _part(grad, tile.queries)
                here.copy_(torch.bmm(grad_a, key).view(here.shape))
            for grad, query in zip(grad_k, q_tile, strict=True):
                here = _part(grad, tile.keys)
                here.add_(torch.bmm(grad_a.mT, query).view(here.shape))
            for grad, g in zip(grad_v, g_tile, strict=True):
                here = _part(grad, tile.keys)
                here.add_(torch.bmm(p.mT, g).view(here.shape))
        return grads[0], grads[1], grads[2]


class _Operands(NamedTuple):
    """Head-major views of q, k and v of each segment."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]

    @staticmethod
    def of(q: list[Tensor], k: list[Tensor], v: list[Tensor], tiles: Tiling) -> _Operands:
        return _Operands(*([_head_major(t, tiles) for t in segments] for segments in (q, k, v)))

    def cut(
        self, tiles: Tiling, tile: Tile, dtype: torch.dtype
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The rows of a tile, [groups·B·H, rows, E], in the dtype of the statistics."""
        return (
            [_rows(t, tiles, tile.queries, dtype) for t in self.q],
            [_rows(t, tiles, tile.keys, dtype) for t in self.k],
            [_rows(t, tiles, tile.keys, dtype) for t in self.v],
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


def _rows(head_major: Tensor, tiles: Tiling, sides: Sides, dtype: torch.dtype) -> Tensor:
    """A part of a head-major view as [groups·B·H, rows, E]; copied where it is no view."""
    part = _part(head_major, sides)
    return part.reshape(part.shape[: len(tiles.groups) + 2].numel(), -1, part.shape[-1]).to(dtype)


def _exp(a: Tensor) -> Tensor:
    """e^a in place, with the least normal number in place of less: denormal numbers take 30 times as long."""
    return a.clamp_min_(LEAST_LOG[a.dtype]).exp_()
