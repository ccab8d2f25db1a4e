"""The recurrence of RWKV-4: a mean of the values so far, weighted by e^key and decaying with distance.

    y_t = (Σ_{i<t} e^{k_i − (t−1−i)W} v_i + e^{u + k_t} v_t) / (the same without v),  W = e^time_decay

The token before is not decayed; the current one has the bonus u in place of a decay. Sums are held as
(p, q, o): numerator and denominator divided by e^o, o the largest exponent so far, so that no key overflows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

NOTHING = -1e38  # exponent of an empty sum


class Sums(NamedTuple):
    """numerator, denominator, exponent [..., C]; their true values are p·e^o and q·e^o."""

    p: Tensor
    q: Tensor
    o: Tensor

    def decayed(self, exponent: Tensor) -> Sums:
        """Multiplied by e^exponent."""
        return Sums(self.p, self.q, self.o + exponent)

    def plus(self, k: Tensor, v: Tensor) -> Sums:
        """With one more term, v of weight e^k."""
        return add(self, Sums(v, torch.ones_like(v), k))


def add(a: Sums, b: Sums) -> Sums:
    """The sum of two; its exponent carries no gradient, as the quotient does not depend on it."""
    o = torch.maximum(a.o, b.o).detach()
    of_a, of_b = (a.o - o).exp(), (b.o - o).exp()
    return Sums(of_a * a.p + of_b * b.p, of_a * a.q + of_b * b.q, o)


def recurrence(time_decay_C: Tensor, time_first_C: Tensor, k_BNC: Tensor, v_BNC: Tensor) -> Tensor:
    """y[B, N, C] token by token, as the public kernel has it: the definition, and slow."""
    W = time_decay_C.exp()
    sums, outs = _empty(k_BNC[:, 0]), []
    for k, v in zip(k_BNC.unbind(1), v_BNC.unbind(1), strict=True):
        now = sums.plus(time_first_C + k, v)
        outs.append(now.p / now.q)
        sums = sums.decayed(-W).plus(k, v)
    return torch.stack(outs, 1)


def wkv(time_decay_C: Tensor, time_first_C: Tensor, k_BNC: Tensor, v_BNC: Tensor) -> Tensor:
    """`recurrence` in 2√N steps: √N chunks side by side, then from chunk to chunk. In float32 at least."""
    B, N, C = k_BNC.shape
    dtype = torch.float64 if k_BNC.dtype == torch.float64 else torch.float32
    length = math.isqrt(N - 1) + 1
    chunks = -(-N // length)
    k, v = (_chunked(each.to(dtype), chunks, length) for each in (k_BNC, v_BNC))  # [length, B, chunks, C]
    W = time_decay_C.to(dtype).exp()

    sums, before = _empty(k[0]), list[Sums]()  # within each chunk, the tokens before each place
    for k_t, v_t in zip(k, v, strict=True):
        before.append(sums)
        sums = sums.decayed(-W).plus(k_t, v_t)

    carried, carries = _empty(k[0][:, 0]), list[Sums]()  # all tokens of the chunks before
    for whole in zip(*(each.unbind(1) for each in sums), strict=True):
        carries.append(carried)
        carried = add(carried.decayed(-length * W), Sums(*whole))

    inside = Sums(*(torch.stack(each) for each in zip(*before, strict=True)))
    outside = Sums(*(torch.stack(each, 1) for each in zip(*carries, strict=True)))
    place = torch.arange(length, device=k_BNC.device, dtype=dtype).view(-1, 1, 1, 1)
    now = add(outside.decayed(-place * W), inside).plus(time_first_C.to(dtype) + k, v)
    return (now.p / now.q).permute(1, 2, 0, 3).reshape(B, chunks * length, C)[:, :N].to(k_BNC.dtype)


def _chunked(x_BNC: Tensor, chunks: int, length: int) -> Tensor:
    missing = chunks * length - x_BNC.shape[1]
    padded = torch.nn.functional.pad(x_BNC, (0, 0, 0, missing))  # at the end, where no token sees it
    return padded.unflatten(1, (chunks, length)).permute(2, 0, 1, 3)


def _empty(like: Tensor) -> Sums:
    zeros = torch.zeros_like(like)
    return Sums(zeros, zeros, torch.full_like(like, NOTHING))
