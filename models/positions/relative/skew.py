"""From relative to absolute positions and back, by padding and views: no index, so sums keep their order.

A row of width 2N − 1 runs over key − query from 1 − N to N − 1; a row of width N runs over the keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_keys(relative: Tensor) -> Tensor:
    """[…, N, 2N − 1] → […, N, N]: element (i, j) is that of query i and key − query = j − i."""
    N = relative.shape[-2]
    if N == 1:
        return relative
    run = relative.flatten(-2)[..., N - 1 : N - 1 + N * (2 * N - 2)]
    return run.unflatten(-1, (N, 2 * N - 2))[..., :N]


def to_relative(absolute: Tensor) -> Tensor:
    """[…, N, N] → […, N, 2N − 1], the transpose of `to_keys`: zeros where a query has no such key."""
    N = absolute.shape[-1]
    if N == 1:
        return absolute
    run = F.pad(absolute, (0, N - 2)).flatten(-2)
    return F.pad(run, (N - 1, 1)).unflatten(-1, (N, 2 * N - 1))


def unclip(clipped: Tensor, N: int) -> Tensor:
    """[…, 2K + 1] → […, 2N − 1]: key − query beyond ±K takes the values of ±K."""
    beyond = N - 1 - clipped.shape[-1] // 2
    if beyond <= 0:
        return F.pad(clipped, (beyond, beyond))
    ends = (end.expand(*end.shape[:-1], beyond) for end in (clipped[..., :1], clipped[..., -1:]))
    first, last = ends
    return torch.cat((first, clipped, last), -1)


def clip(relative: Tensor, K: int) -> Tensor:
    """[…, 2N − 1] → […, 2K + 1], the transpose of `unclip`: what lies beyond ±K is summed into ±K."""
    beyond = relative.shape[-1] // 2 - K
    if beyond <= 0:
        return F.pad(relative, (-beyond, -beyond))
    if K == 0:
        return relative.sum(-1, keepdim=True)
    first, inner, last = relative.split((beyond + 1, 2 * K - 1, beyond + 1), -1)
    return torch.cat((first.sum(-1, keepdim=True), inner, last.sum(-1, keepdim=True)), -1)
