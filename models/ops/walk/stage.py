"""The element-wise stage of the streamed operator, on the pairs of one chunk.

Three functions that torch.compile can fuse; fused, they need no scratch. S is the chunk's pair
dimensions; a query or key shared by many pairs has size 1 there and broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Projected(NamedTuple):
    """q, k and v of each segment, or their gradients."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]


class Scratch:
    """Named buffers that all chunks reuse, so that they stay in the caches.

    Gradients overwrite their operands: ("k", 0) holds the first k, then ∂k; ("q'", 0) a product
    that is summed at once, then ∂q. Operands kept for backward are not in here.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[object, Tensor] = {}
        self._views: dict[tuple[object, ...], Tensor] = {}  # the same few shapes recur

    def __call__(self, name: object, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory of this shape; overwrites what the name held."""
        place = (name, shape, dtype)
        view = self._views.get(place)
        if view is not None:
            return view
        numbers, key = math.prod(shape), (name, dtype or self._like.dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < numbers:
            buffer = self._buffers[key] = self._like.new_empty(numbers, dtype=dtype)
            self._views = {other: view for other, view in self._views.items() if other[0] != name}
        view = self._views[place] = buffer[:numbers].view(shape)
        return view


def logits(
    q_SBHE: Sequence[Tensor],
    k_SBHE: Sequence[Tensor],
    scale: float,
    dtype: torch.dtype,
    scratch: Scratch | None,
) -> Tensor:
    """scale · Σ ⟨q, k⟩ over the segments → [S, B, H] in `dtype`."""
    return _dots(q_SBHE, k_SBHE, dtype, scratch).mul_(scale)


def merge(lse: Tensor, *outs: Tensor, logits: Tensor, values: Sequence[Tensor]) -> None:
    """Merges pairs into the running softmax of their queries, in place.

    lse [Q, B, H] and each normalised out [Q, B, H, E] are the state; logits [L, Q, B, H] and values
    [L, Q, B, H, E] the pairs, −inf where a query has no pair in a layer.
    """
    if logits.shape[0] == 1:
        logits = logits.squeeze(0)
        torch.logaddexp(lse, logits, out=lse)
        weight = logits.sub_(_finite(lse)).exp_().unsqueeze(-1)
        for out, value in zip(outs, values, strict=True):
            out.lerp_(value.squeeze(0).to(out.dtype), weight)
    else:
        new = torch.logaddexp(lse, logits.logsumexp(0))
        finite = _finite(new)
        weights, keep = (logits - finite).exp_().unsqueeze(-1), (lse - finite).exp_().unsqueeze(-1)
        for out, value in zip(outs, values, strict=True):
            out.mul_(keep)
            if torch.compiler.is_compiling():  # the loop would be recompiled for every L
                out.add_((value.to(out.dtype) * weights).sum(0))
                continue
            for layer in range(len(value)):
                out.addcmul_(value[layer].to(out.dtype), weights[layer])
        lse.copy_(new)


def _finite(lse: Tensor) -> Tensor:
    """lse without −inf, so that a query without pairs so far has weight 0, not NaN."""
    return lse.clamp_min(torch.finfo(lse.dtype).min)


def gradients(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    lse: Tensor,
    delta: Tensor,
    *grad_outs: Tensor,
    scale: float,
    scratch: Scratch | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """∂q, ∂k, ∂v of each segment [S, B, H, E], in the dtype of q.

    lse [S, B, H] is final; delta [S, B, H] = Σ ⟨∂out, out⟩ and grad_outs [S, B, H, E] belong to the
    pairs' queries.
    """
    weight = logits(q, k, scale, lse.dtype, scratch).sub_(lse).exp_()
    grad_weight = _dots(grad_outs, v, lse.dtype, scratch)
    grad_logits = grad_weight.sub_(delta).mul_(weight).mul_(scale).to(q[0].dtype).unsqueeze(-1)
    weight = weight.to(q[0].dtype).unsqueeze(-1)
    return (
        [_times(key, grad_logits, scratch, ("q'", i)) for i, key in enumerate(k)],
        [_times(query, grad_logits, scratch, ("k", i)) for i, query in enumerate(q)],
        [_times(g, weight, scratch, ("v", i)) for i, g in enumerate(grad_outs)],
    )


def _dots(
    a_SBHE: Sequence[Tensor], b_SBHE: Sequence[Tensor], dtype: torch.dtype, scratch: Scratch | None
) -> Tensor:
    """Σ ⟨a, b⟩ over the segments → [S, B, H]."""
    first, *others = (_dot(a, b, dtype, scratch) for a, b in zip(a_SBHE, b_SBHE, strict=True))
    for other in others:
        first.add_(other)
    return first


def _dot(a: Tensor, b: Tensor, dtype: torch.dtype, scratch: Scratch | None) -> Tensor:
    a, b = a.to(dtype), b.to(dtype)
    if scratch is None:
        return (a * b).sum(-1)
    return torch.mul(a, b, out=scratch(("q'", 0), _broadcast(a, b), dtype)).sum(-1)


def _times(a: Tensor, factor: Tensor, scratch: Scratch | None, name: object) -> Tensor:
    if scratch is None:
        return a * factor
    return torch.mul(a, factor, out=scratch(name, _broadcast(a, factor)))


def _broadcast(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """The common shape of two tensors of equal rank (torch.broadcast_shapes takes 90 µs)."""
    return tuple(map(max, a.shape, b.shape))


class Elementwise(NamedTuple):
    logits: Callable[..., Tensor]
    merge: Callable[..., None]
    gradients: Callable[..., tuple[list[Tensor], list[Tensor], list[Tensor]]]


@lru_cache
def stage(compiled: bool) -> Elementwise:
    """The three functions, as they are or fused (for chunks that are `uniform`)."""
    if not compiled:
        return Elementwise(logits, merge, gradients)
    return Elementwise(_fused(logits), torch.compile(merge, dynamic=True), _fused(gradients))


def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function, dynamic=True)

    def run(*tensors: Any, scratch: Scratch, **options: Any) -> Any:
        return compiled(*tensors, scratch=None, **options)

    return run
