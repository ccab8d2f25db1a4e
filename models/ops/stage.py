"""The element-wise stage of the streamed operator, on the pairs of one chunk.

Three functions that torch.compile can fuse. S stands for the pair dimensions of the chunk; a query
or key that is the same for many pairs has size 1 there and broadcasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


def logits(q_SBHE: Sequence[Tensor], k_SBHE: Sequence[Tensor], scale: float, dtype: torch.dtype) -> Tensor:
    """scale · Σ ⟨q, k⟩ over the segments → [S, B, H] in `dtype`."""
    total = sum((q.to(dtype) * k.to(dtype)).sum(-1) for q, k in zip(q_SBHE, k_SBHE, strict=True))
    return total.mul_(scale)  # type: ignore[union-attr]


def merge(lse: Tensor, outs: Sequence[Tensor], logits: Tensor, values: Sequence[Tensor]) -> None:
    """Takes pairs into the running softmax of their queries, in place.

    lse [Q, B, H] and each normalised out [Q, B, H, E] are the state; logits [L, Q, B, H] and values
    [L, Q, B, H, E] the pairs, −inf where a query has no pair in a layer.
    """
    if logits.shape[0] == 1:
        new = torch.logaddexp(lse, logits[0])
        weight = (logits[0] - new).exp_().unsqueeze(-1)
        for out, value in zip(outs, values, strict=True):
            out.lerp_(value[0].to(out.dtype), weight)
    else:
        new = torch.logaddexp(lse, logits.logsumexp(0))
        finite = new.clamp_min(torch.finfo(new.dtype).min)  # a query may have met no pair yet
        weights, keep = (logits - finite).exp_().unsqueeze(-1), (lse - finite).exp_().unsqueeze(-1)
        for out, value in zip(outs, values, strict=True):
            out.mul_(keep)
            for layer in range(len(value)):
                out.addcmul_(value[layer].to(out.dtype), weights[layer])
    lse.copy_(new)


def gradients(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    lse: Tensor,
    delta: Tensor,
    grad_outs: Sequence[Tensor],
    scale: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """∂q, ∂k, ∂v of each segment [S, B, H, E], in the dtype of q.

    lse [S, B, H] is final; delta [S, B, H] = Σ ⟨∂out, out⟩ and grad_outs [S, B, H, E] belong to the
    pairs' queries.
    """
    weight = (logits(q, k, scale, lse.dtype) - lse).exp_()
    grad_weight = sum((g * value).sum(-1, dtype=lse.dtype) for g, value in zip(grad_outs, v, strict=True))
    grad_logits = ((grad_weight - delta) * weight).mul_(scale).to(q[0].dtype).unsqueeze(-1)
    weight = weight.to(q[0].dtype).unsqueeze(-1)
    return (
        [key * grad_logits for key in k],
        [query * grad_logits for query in q],
        [g * weight for g in grad_outs],
    )


class Stage(NamedTuple):
    logits: Callable[..., Tensor]
    merge: Callable[..., None]
    gradients: Callable[..., tuple[list[Tensor], list[Tensor], list[Tensor]]]


@lru_cache
def stage(compiled: bool) -> Stage:
    """The three functions, as they are or fused."""
    functions = (logits, merge, gradients)
    return Stage(*(torch.compile(f, dynamic=True) for f in functions)) if compiled else Stage(*functions)
