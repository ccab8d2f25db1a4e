"""Triton kernels of bands, backward: the gradients of queries, and those of keys and values.

Each program sums in registers over what its tokens meet: no atomics. With the merged lse and delta the
gradient of every tile is exact.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from models.ops.fused.bands.forward import in_band
from models.ops.fused.forward import dot, load_tile, round_to, store_tile


@triton.jit
def query_gradients(
    q, k, v, tokens, visits, visit_block, steps, step_tile, tile_tokens, query_row, key_row, place, band,
    lse, delta, grad, grad_q, B, N, scale,
    HEADS: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    DIMS: tl.constexpr, Q_BANK: tl.constexpr, K_BANK: tl.constexpr, V_BANK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """∂q of BQ tokens, one head of one sample: of each block's rows, or without a bank the tokens' sum.

    lse, delta [N, B, H] and grad [N, B, D] are the merged ones.
    """
    D: tl.constexpr = HEADS * E
    WHOLE: tl.constexpr = EP == E
    head = tl.program_id(1)
    b = tl.program_id(2)
    token = tl.load(tokens + tl.program_id(0) * BQ + tl.arange(0, BQ))
    own = token >= 0
    token = tl.where(own, token, 0)
    wide = tl.arange(0, EP)
    column = head * E + wide
    at = token.to(tl.int64) * B + b
    g = load_tile(grad, at, own, column, wide < E, D, WHOLE)
    whole = tl.load(lse + at * HEADS + head, mask=own, other=float("inf"))
    d = tl.load(delta + at * HEADS + head, mask=own, other=0.0)
    if not Q_BANK:
        q_tile = load_tile(q, at, own, column, wide < E, D, WHOLE)
    acc = tl.zeros([BQ, EP], tl.float32)
    first = tl.load(visits + tl.program_id(0))
    last = tl.load(visits + tl.program_id(0) + 1)
    for visit in range(first, last):
        block = tl.load(visit_block + visit)
        row = tl.load(query_row + block * N + token, mask=own, other=-1)
        here = row >= 0
        q_at = row.to(tl.int64) * B + b
        if Q_BANK:
            q_tile = load_tile(q, q_at, here, column, wide < E, D, WHOLE)
            acc = tl.zeros([BQ, EP], tl.float32)
        start = tl.load(steps + visit)
        stop = tl.load(steps + visit + 1)
        for step in range(start, stop):
            key = tl.load(tile_tokens + tl.load(step_tile + step) * BK + tl.arange(0, BK))
            key_at = tl.load(key_row + block * N + key, mask=key >= 0, other=-1)
            there = key_at >= 0
            key = tl.where(there, key, 0)
            k_at = (key_at if K_BANK else key).to(tl.int64) * B + b
            v_at = (key_at if V_BANK else key).to(tl.int64) * B + b
            k_tile = load_tile(k, k_at, there, column, wide < E, D, WHOLE)
            v_tile = load_tile(v, v_at, there, column, wide < E, D, WHOLE)
            ok = here[:, None] & there[None, :] & in_band(token, key, block, place, band, N, DIMS)
            a = dot(q_tile, tl.trans(k_tile), tl.zeros([BQ, BK], tl.float32), PRECISION) * scale
            p = tl.where(ok, tl.exp(a - whole[:, None]), 0.0)
            grad_p = dot(g, tl.trans(v_tile), tl.zeros([BQ, BK], tl.float32), PRECISION)
            grad_a = round_to(p * (grad_p - d[:, None]) * scale, k.dtype.element_ty)
            acc = dot(grad_a, k_tile, acc, PRECISION)
        if Q_BANK:
            store_tile(grad_q, q_at, here, column, wide < E, D, WHOLE, acc)
    if not Q_BANK:
        store_tile(grad_q, at, own, column, wide < E, D, WHOLE, acc)


@triton.jit
def key_gradients(
    q, k, v, tokens, visits, visit_block, steps, step_tile, tile_tokens, query_row, key_row, place, band,
    lse, delta, grad, grad_k, grad_v, B, N, scale,
    HEADS: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    DIMS: tl.constexpr, Q_BANK: tl.constexpr, K_BANK: tl.constexpr, V_BANK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """∂k and ∂v of BK tokens, one head of one sample; the steps are tiles of BQ queries."""
    D: tl.constexpr = HEADS * E
    WHOLE: tl.constexpr = EP == E
    head = tl.program_id(1)
    b = tl.program_id(2)
    token = tl.load(tokens + tl.program_id(0) * BK + tl.arange(0, BK))
    own = token >= 0
    token = tl.where(own, token, 0)
    wide = tl.arange(0, EP)
    column = head * E + wide
    at = token.to(tl.int64) * B + b
    if not K_BANK:
        k_tile = load_tile(k, at, own, column, wide < E, D, WHOLE)
    if not V_BANK:
        v_tile = load_tile(v, at, own, column, wide < E, D, WHOLE)
    acc_k = tl.zeros([BK, EP], tl.float32)
    acc_v = tl.zeros([BK, EP], tl.float32)
    first = tl.load(visits + tl.program_id(0))
    last = tl.load(visits + tl.program_id(0) + 1)
    for visit in range(first, last):
        block = tl.load(visit_block + visit)
        row = tl.load(key_row + block * N + token, mask=own, other=-1)
        here = row >= 0
        row_at = row.to(tl.int64) * B + b
        if K_BANK:
            k_tile = load_tile(k, row_at, here, column, wide < E, D, WHOLE)
            acc_k = tl.zeros([BK, EP], tl.float32)
        if V_BANK:
            v_tile = load_tile(v, row_at, here, column, wide < E, D, WHOLE)
            acc_v = tl.zeros([BK, EP], tl.float32)
        start = tl.load(steps + visit)
        stop = tl.load(steps + visit + 1)
        for step in range(start, stop):
            query = tl.load(tile_tokens + tl.load(step_tile + step) * BQ + tl.arange(0, BQ))
            query_at = tl.load(query_row + block * N + query, mask=query >= 0, other=-1)
            there = query_at >= 0
            query = tl.where(there, query, 0)
            g_at = query.to(tl.int64) * B + b
            q_at = (query_at if Q_BANK else query).to(tl.int64) * B + b
            q_tile = load_tile(q, q_at, there, column, wide < E, D, WHOLE)
            g = load_tile(grad, g_at, there, column, wide < E, D, WHOLE)
            whole = tl.load(lse + g_at * HEADS + head, mask=there, other=float("inf"))
            d = tl.load(delta + g_at * HEADS + head, mask=there, other=0.0)
            inside = tl.trans(in_band(query, token, block, place, band, N, DIMS))
            ok = here[:, None] & there[None, :] & inside
            a = dot(k_tile, tl.trans(q_tile), tl.zeros([BK, BQ], tl.float32), PRECISION) * scale
            p = tl.where(ok, tl.exp(a - whole[None, :]), 0.0)
            acc_v = dot(round_to(p, grad.dtype.element_ty), g, acc_v, PRECISION)
            grad_p = dot(v_tile, tl.trans(g), tl.zeros([BK, BQ], tl.float32), PRECISION)
            grad_a = round_to(p * (grad_p - d[None, :]) * scale, q.dtype.element_ty)
            acc_k = dot(grad_a, q_tile, acc_k, PRECISION)
        if K_BANK:
            store_tile(grad_k, row_at, here, column, wide < E, D, WHOLE, acc_k)
        if V_BANK:
            store_tile(grad_v, row_at, here, column, wide < E, D, WHOLE, acc_v)
    if not K_BANK:
        store_tile(grad_k, at, own, column, wide < E, D, WHOLE, acc_k)
    if not V_BANK:
        store_tile(grad_v, at, own, column, wide < E, D, WHOLE, acc_v)
