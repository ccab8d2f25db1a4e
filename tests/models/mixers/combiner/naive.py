"""Combiner attention token by token, from its definition: sets of keys and values, and one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]  # keys and values


def summary(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens [n, E]: their greatest key, and their values weighted by the greatest query."""
    return k.amax(0), (k @ q.amax(0)).softmax(0) @ v


def pairs(form: str, q: Tensor, k: Tensor, v: Tensor, r: int, i: int, causal: bool) -> Pairs:
    """What the token at row r and column i attends to; q, k, v [R, S, E]."""
    R, S = k.shape[:2]
    own = [(k[r, u], v[r, u]) for u in range(i + 1 if causal else S)]
    others = [p for p in range(R) if (p < r if causal else p != r)]
    if form == "fixed":
        return own + [summary(q[p], k[p], v[p]) for p in others]
    column = [(k[p, i], v[p, i]) for p in range(r)]
    above = [summary(q[:r, j], k[:r, j], v[:r, j]) for j in range(S) if j != i and r]
    left = [summary(q[p, :i], k[p, :i], v[p, :i]) for p in range(r) if i]
    right = [summary(q[p, i + 1 :], k[p, i + 1 :], v[p, i + 1 :]) for p in range(r) if i + 1 < S]
    return own + column + above + left + right


def attend(form: str, q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """q, k, v [R, S, E], q divided by √E already → [R, S, E]."""
    out = torch.empty_like(v)
    for r in range(k.shape[0]):
        for i in range(k.shape[1]):
            keys, values = map(torch.stack, zip(*pairs(form, q, k, v, r, i, causal), strict=True))
            out[r, i] = (keys @ q[r, i]).softmax(0) @ values
    return out
