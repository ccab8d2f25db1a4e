"""Triton kernels of the dense part: attention with a bias, and its gradients.

Rows are [N, B, H·E], pair tensors [queries, N, H, B]: the relative kernels write a pair's heads and samples
in one piece, and a program here reads BB neighbouring samples of each pair. A tile is BB samples × BI queries
× BJ keys of one head, so that products are batched over samples. EP ≥ E is a power of two.
"""

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from models.ops.fused.alpha.kernels.tokens import product, rounded


@triton.jit
def load_tokens(
    x, first, b, head, stride, batch, TOKENS, B, E: tl.constexpr, EP: tl.constexpr, COUNT: tl.constexpr
):
    """Rows of one head of COUNT tokens: [BB, COUNT, EP]; tokens are `stride` apart, samples `batch`."""
    i = first + tl.arange(0, COUNT)
    e = tl.arange(0, EP)
    at = i[None, :, None] * stride + b[:, None, None] * batch + head * E + e[None, None, :]
    mask = (b < B)[:, None, None] & (i < TOKENS)[None, :, None]
    if EP != E:
        mask = mask & (e < E)[None, None, :]
    return tl.load(x + at, mask=mask, other=0.0)


@triton.jit
def store_tokens(
    x, rows, first, b, head, TOKENS, B,
    E: tl.constexpr, EP: tl.constexpr, COUNT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i = first + tl.arange(0, COUNT)
    e = tl.arange(0, EP)
    at = (i[None, :, None] * B + b[:, None, None]) * (tl.num_programs(1) * E) + head * E + e[None, None, :]
    mask = (b < B)[:, None, None] & (i < TOKENS)[None, :, None]
    if EP != E:
        mask = mask & (e < E)[None, None, :]
    tl.store(x + at, rounded(rows, x.dtype.element_ty, UPCAST), mask=mask)


@triton.jit
def pair_places(
    exists, i0, j0, b, head, first, rows, N, B,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Places [BB, BI, BJ] in [queries, N, H, B], and which pairs are there.

    CAUSAL leaves out keys later than their query; MASK pairs that are 0 in exists [queries, N].
    """
    i = i0 + tl.arange(0, BI)
    j = j0 + tl.arange(0, BJ)
    pair = i[:, None] * N + j[None, :]
    there = (i < rows)[:, None] & (j < N)[None, :]
    if CAUSAL:
        there = there & ((first + i)[:, None] >= j[None, :])
    if MASK:
        there = there & (tl.load(exists + pair, mask=there, other=0) != 0)
    at = (pair[None, :, :] * tl.num_programs(1) + head) * B + b[:, None, None]
    return at, (b < B)[:, None, None] & there[None, :, :]


@triton.jit
def attend_kernel(
    q, k, v, bias, exists, lse, out, weights, B, N, first, rows,
    q_stride, k_stride, v_stride, q_batch, k_batch, v_batch, scale,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, WEIGHTS: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr,
    BB: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """lse [queries, B, H], out [queries, B, H·E] and, with WEIGHTS, the softmax weights [queries, N, H, B].

    The first pass over the keys finds the log-sum-exp; the second has the final weights at hand.
    """
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    head = tl.program_id(1)
    i0 = tl.program_id(2) * BI
    queries = load_tokens(q, first + i0, b, head, q_stride, q_batch, first + rows, B, E, EP, BI)
    stop = N
    if CAUSAL:
        stop = tl.minimum(N, first + i0 + BI)
    log_sum = tl.full([BB, BI], -float("inf"), tl.float32)
    total = tl.zeros([BB, BI], tl.float32)
    sums = tl.zeros([BB, BI, EP], tl.float32)
    for turn in tl.static_range(2):
        for j0 in range(0, stop, BJ):
            keys = load_tokens(k, j0, b, head, k_stride, k_batch, N, B, E, EP, BJ)
            zero = tl.zeros([BB, BI, BJ], tl.float32)
            a = product(queries, tl.permute(keys, (0, 2, 1)), zero, UPCAST) * scale
            place, there = pair_places(exists, i0, j0, b, head, first, rows, N, B, CAUSAL, MASK, BI, BJ)
            if BIAS:
                a += tl.load(bias + place, mask=there, other=0.0)
            a = tl.where(there, a, -float("inf"))
            if turn == 0:
                top = tl.maximum(log_sum, tl.max(a, 2))
                finite = tl.where(top == -float("inf"), 0.0, top)
                total = total * tl.exp(log_sum - finite) + tl.sum(tl.exp(a - finite[:, :, None]), 2)
                log_sum = top
            else:
                p = rounded(tl.exp(a - log_sum[:, :, None]), k.dtype.element_ty, UPCAST)
                if WEIGHTS:
                    tl.store(weights + place, p, mask=there)
                values = load_tokens(v, j0, b, head, v_stride, v_batch, N, B, E, EP, BJ)
                sums = product(p, values, sums, UPCAST)
        if turn == 0:
            i = i0 + tl.arange(0, BI)
            at = (i[None, :] * B + b[:, None]) * tl.num_programs(1) + head
            log_sum += tl.log(tl.where(total > 0.0, total, 1.0))  # −inf for a query without pairs here
            tl.store(lse + at, log_sum, mask=(b < B)[:, None] & (i < rows)[None, :])
            log_sum = tl.where(log_sum == -float("inf"), 0.0, log_sum)
    store_tokens(out, sums, i0, b, head, rows, B, E, EP, BI, UPCAST)


@triton.jit
def scores_kernel(
    q, k, v, grad, lse, delta, dp, exists, logits, grad_weights, B, N, first, rows,
    q_stride, k_stride, v_stride, grad_stride, q_batch, k_batch, v_batch, grad_batch, scale,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, NARROW: tl.constexpr, FINISH: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr,
    BB: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """scale · ⟨q, k⟩ − lse and ⟨∂out, v⟩ − delta of every pair; to the latter NARROW adds dp.

    FINISH writes P and dS = P (dP − delta) in their places, where nothing is to be added to the logits.
    """
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    head = tl.program_id(1)
    i0 = tl.program_id(2) * BI
    queries = load_tokens(q, first + i0, b, head, q_stride, q_batch, first + rows, B, E, EP, BI)
    grads = load_tokens(grad, first + i0, b, head, grad_stride, grad_batch, first + rows, B, E, EP, BI)
    i = i0 + tl.arange(0, BI)
    at = ((first + i)[None, :] * B + b[:, None]) * tl.num_programs(1) + head
    own = (b < B)[:, None] & (i < rows)[None, :]
    log_sum = tl.load(lse + at, mask=own, other=0.0)
    log_sum = tl.where(log_sum == -float("inf"), 0.0, log_sum)
    minus = tl.load(delta + at, mask=own, other=0.0)
    stop = N
    if CAUSAL:
        stop = tl.minimum(N, first + i0 + BI)
    for j0 in range(0, stop, BJ):
        keys = load_tokens(k, j0, b, head, k_stride, k_batch, N, B, E, EP, BJ)
        values = load_tokens(v, j0, b, head, v_stride, v_batch, N, B, E, EP, BJ)
        place, there = pair_places(exists, i0, j0, b, head, first, rows, N, B, CAUSAL, MASK, BI, BJ)
        zero = tl.zeros([BB, BI, BJ], tl.float32)
        a = product(queries, tl.permute(keys, (0, 2, 1)), zero, UPCAST) * scale - log_sum[:, :, None]
        d = product(grads, tl.permute(values, (0, 2, 1)), zero, UPCAST) - minus[:, :, None]
        if NARROW:
            d += tl.load(dp + place, mask=there, other=0.0).to(tl.float32)
        if FINISH:
            a = tl.exp(a)
            d = a * d
        tl.store(logits + place, rounded(a, logits.dtype.element_ty, UPCAST), mask=there)
        tl.store(grad_weights + place, rounded(d, grad_weights.dtype.element_ty, UPCAST), mask=there)


@triton.jit
def query_gradients_kernel(
    grad_logits, k, exists, grad_q, B, N, first, rows, k_stride, k_batch, scale,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BB: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """∂q [queries, B, H·E] = scale · dS · k."""
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    head = tl.program_id(1)
    i0 = tl.program_id(2) * BI
    stop = N
    if CAUSAL:
        stop = tl.minimum(N, first + i0 + BI)
    sums = tl.zeros([BB, BI, EP], tl.float32)
    for j0 in range(0, stop, BJ):
        keys = load_tokens(k, j0, b, head, k_stride, k_batch, N, B, E, EP, BJ)
        place, there = pair_places(exists, i0, j0, b, head, first, rows, N, B, CAUSAL, MASK, BI, BJ)
        sums = product(tl.load(grad_logits + place, mask=there, other=0.0), keys, sums, UPCAST)
    store_tokens(grad_q, sums * scale, i0, b, head, rows, B, E, EP, BI, UPCAST)


@triton.jit
def key_gradients_kernel(
    weights, grad_logits, q, grad, exists, grad_k, grad_v, B, N, first, rows,
    q_stride, grad_stride, q_batch, grad_batch, scale,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BB: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """∂k [N, B, H·E] = scale · dSᵀ · q and ∂v = Pᵀ · ∂out, of BI keys over BJ queries at a time."""
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    head = tl.program_id(1)
    j0 = tl.program_id(2) * BI
    start = 0
    if CAUSAL:
        start = tl.maximum(0, j0 - first) // BJ * BJ
    key_sums = tl.zeros([BB, BI, EP], tl.float32)
    value_sums = tl.zeros([BB, BI, EP], tl.float32)
    for i0 in range(start, rows, BJ):
        place, there = pair_places(exists, i0, j0, b, head, first, rows, N, B, CAUSAL, MASK, BJ, BI)
        queries = load_tokens(q, first + i0, b, head, q_stride, q_batch, first + rows, B, E, EP, BJ)
        ds = tl.load(grad_logits + place, mask=there, other=0.0)
        key_sums = product(tl.permute(ds, (0, 2, 1)), queries, key_sums, UPCAST)
        grads = load_tokens(grad, first + i0, b, head, grad_stride, grad_batch, first + rows, B, E, EP, BJ)
        p = tl.load(weights + place, mask=there, other=0.0)
        value_sums = product(tl.permute(p, (0, 2, 1)), grads, value_sums, UPCAST)
    store_tokens(grad_k, key_sums * scale, j0, b, head, N, B, E, EP, BI, UPCAST)
    store_tokens(grad_v, value_sums, j0, b, head, N, B, E, EP, BI, UPCAST)
