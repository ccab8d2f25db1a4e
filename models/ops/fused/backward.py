"""Triton kernels of the fused backward pass: no atomics, every sum in a fixed order.

For each chunk of pairs, `pair_gradients` recomputes q, k and v and writes ∂q, ∂k, ∂v once;
`bank_gradients` and `token_gradients` are products that sum over an entry's or a token's pairs in registers.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from models.ops.fused.forward import (
    dot,
    entry_of,
    head_sums,
    load_tile,
    per_head,
    project,
    project_two,
    round_to,
    store_tile,
)


@triton.jit(do_not_specialize=["first_tile", "first_pair", "first_run", "length"])
def pair_gradients(
    xq, xk, xv, wq, wk, wv, kept_q, kept_k, kept_v, query, key, run_start, run_entry, tile_run, tile_first,
    lse, delta, grad, grad_q, grad_k, grad_v, B, first_tile, first_pair, first_run, scale, length,
    C: tl.constexpr, HEADS: tl.constexpr, E: tl.constexpr,
    Q_BANK: tl.constexpr, K_BANK: tl.constexpr, V_BANK: tl.constexpr, JOINT: tl.constexpr,
    SLOTS: tl.constexpr, KEPT: tl.constexpr, AGAIN: tl.constexpr,
    HP: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂q, ∂k, ∂v [pairs of the chunk, B, D] of BM rows (pair, sample) of one run, HP heads.

    lse, delta [N, B, H] and grad [N, B, D] are the merged ones of the queries.
    """
    D: tl.constexpr = HEADS * E
    WHOLE: tl.constexpr = EP == E
    tile = first_tile + tl.program_id(0)
    run = tl.load(tile_run + tile)
    m = tl.load(tile_first + tile) + tl.arange(0, BM)
    start = tl.load(run_start + run)
    stop = tl.load(run_start + run + 1)
    pair = start + m // B
    b = m % B
    ok = pair < stop
    query_row = tl.load(query + pair, mask=ok, other=0) * B + b
    key_row = tl.load(key + pair, mask=ok, other=0) * B + b
    entry = entry_of(run, run_entry, first_run, SLOTS)
    wide = tl.arange(0, HP * EP)
    column = (tl.program_id(1) * HP + wide // EP) * E + wide % EP
    real = wide % EP < E
    head = tl.program_id(1) * HP + tl.arange(0, HP)
    pair_row = pair.to(tl.int64) * B + b
    zero = tl.zeros([BM, HP * EP], tl.float32)
    if JOINT:
        k, v = project_two(
            xk, key_row, wk + entry * C * D, wv + entry * C * D, column, real, zero, zero, length,
            C, D, BK, WHOLE, PRECISION,
        )  # fmt: skip
    elif not V_BANK:
        v = load_tile(xv, key_row, ok, column, real, D, WHOLE)
    elif KEPT:
        v = load_tile(kept_v, pair_row, ok, column, real, D, WHOLE)
    else:
        w = wv + entry * C * D
        v = project(xv, key_row, w, column, real, zero, length, C, D, BK, WHOLE, PRECISION)
    # of the value one number a row is needed, so it goes first and leaves its registers
    g = load_tile(grad, query_row, ok, column, real, D, WHOLE)
    grad_weight = head_sums(v.to(tl.float32) * g, BM, HP, EP)
    if not Q_BANK:
        q = load_tile(xq, query_row, ok, column, real, D, WHOLE)
    elif KEPT:
        q = load_tile(kept_q, pair_row, ok, column, real, D, WHOLE)
    else:
        w = wq + entry * C * D
        q = project(xq, query_row, w, column, real, zero, length, C, D, BK, WHOLE, PRECISION)
        q = round_to(q, xq.dtype.element_ty)
    if not JOINT:
        if not K_BANK:
            k = load_tile(xk, key_row, ok, column, real, D, WHOLE)
        elif KEPT:
            k = load_tile(kept_k, pair_row, ok, column, real, D, WHOLE)
        else:
            w = wk + entry * C * D
            k = project(xk, key_row, w, column, real, zero, length, C, D, BK, WHOLE, PRECISION)
    a = head_sums(q.to(tl.float32) * k, BM, HP, EP) * scale
    # the rows again, from a number that the compiler does not know to be the run: else it holds the
    # addresses of lse, delta and the results in registers over the products
    m = tl.load(tile_first + tile, volatile=True) + tl.arange(0, BM)
    pair = start + m // B
    b = m % B
    ok = pair < stop
    query_row = tl.load(query + pair, mask=ok, other=0) * B + b
    at = query_row[:, None] * HEADS + head[None, :]
    weight = tl.exp(a - tl.load(lse + at, mask=ok[:, None], other=float("inf")))
    grad_a = weight * (grad_weight - tl.load(delta + at, mask=ok[:, None], other=0.0)) * scale
    row = (pair - first_pair) * B + b
    grad_a = per_head(grad_a, BM, HP, EP)
    store_tile(grad_q, row, ok, column, real, D, WHOLE, grad_a * k)
    store_tile(grad_k, row, ok, column, real, D, WHOLE, grad_a * q)
    if AGAIN:  # loaded again, not held in registers
        g = load_tile(grad, query_row, ok, column, real, D, WHOLE)
    store_tile(grad_v, row, ok, column, real, D, WHOLE, per_head(weight, BM, HP, EP) * g)


@triton.jit(do_not_specialize=["d_rows", "first_pair", "first_run"])
def bank_gradients(
    x, d, query, key, run_start, run_entry, run_again, out_q, out_k, out_v, B, d_rows, first_pair, first_run,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    SPANS: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile [BC, BD] of one entry's gradient: Σ x[token]ᵀ·d[pair] over the rows (pair, sample) of its run.

    For up to three banks over one source: FIRST, SECOND, THIRD are their operands (0 q, 1 k, 2 v), d holds
    ∂q, ∂k and ∂v of d_rows rows each. With SPANS an entry that an earlier chunk has met is added to, else
    it is written.
    """
    part = tl.program_id(2)
    operand = tl.where(part == 0, FIRST, tl.where(part == 1, SECOND, THIRD))
    tokens = query
    out = out_q
    if operand == 1:
        out = out_k
    if operand == 2:
        out = out_v
    if operand > 0:
        tokens = key
    d += operand.to(tl.int64) * d_rows * D
    run = first_run + tl.program_id(1)
    tile = tl.program_id(0)
    across: tl.constexpr = (D + BD - 1) // BD
    c = tile // across * BC + tl.arange(0, BC)
    e = tile % across * BD + tl.arange(0, BD)
    start = tl.load(run_start + run)
    rows = (tl.load(run_start + run + 1) - start) * B
    at = out + tl.load(run_entry + run).to(tl.int64) * C * D + c[:, None] * D + e[None, :]
    acc = tl.zeros([BC, BD], tl.float32)
    if SPANS:  # noqa: SIM102 (one is of the compiler, one of the program)
        if tl.load(run_again + run) != 0:
            acc = tl.load(at, mask=(c < C)[:, None] & (e < D)[None, :], other=0.0)
    for first in range(0, rows, BR):
        m = first + tl.arange(0, BR)
        ok = m < rows
        pair = start + m // B
        row = tl.load(tokens + pair, mask=ok, other=0) * B + m % B
        d_row = (pair - first_pair) * B + m % B
        a = load_tile(x, row, ok, c, c < C, C, C % BC == 0)
        g = load_tile(d, d_row, ok, e, e < D, D, D % BD == 0)
        acc = dot(tl.trans(a), g, acc, PRECISION)
    # the columns again, from a number that the compiler does not know to be 0, as in attend
    c += tl.load(run_start + run, volatile=True) - start
    at = out + tl.load(run_entry + run).to(tl.int64) * C * D + c[:, None] * D + e[None, :]
    tl.store(at, round_to(acc, out.dtype.element_ty), mask=(c < C)[:, None] & (e < D)[None, :])


@triton.jit
def back_project(
    acc, d, row, ok, w, c, e,
    C: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + d[row, e]·w[c, e]ᵀ."""
    g = load_tile(d, row, ok, e, e < D, D, D % BK == 0)
    at = w + c[None, :] * D + e[:, None]
    if D % BK == 0 and C % BC == 0:
        b = tl.load(at)
    else:
        b = tl.load(at, mask=(c < C)[None, :] & (e < D)[:, None], other=0.0)
    acc = dot(g, b, acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=["groups", "chunk", "first_pair", "first_run", "length"])
def token_gradients(
    d0, d1, w0, w1, tokens, bounds, step_run, step_pair, run_entry, out, B, groups, chunk,
    first_pair, first_run, length,
    C: tl.constexpr, D: tl.constexpr, BANK: tl.constexpr, TWO: tl.constexpr, SLOTS: tl.constexpr,
    P: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to out [N, B, C] of P tokens × BB samples, BC columns, the sum over the tokens' pairs in the
    chunk of d[pair]·w[entry]ᵀ (of two such products with TWO), or of d[pair] itself without BANK."""
    BM: tl.constexpr = P * BB
    group = tl.program_id(0)
    m = tl.arange(0, BM)
    b = tl.program_id(2) * BB + m % BB
    token = tl.load(tokens + group * P + m // BB)
    own = (token >= 0) & (b < B)
    row = token * B + b
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    at = out + row[:, None] * C + c[None, :]
    inside = own[:, None] & (c < C)[None, :]
    acc = tl.load(at, mask=inside, other=0.0)
    first = tl.load(bounds + chunk * groups + group)
    last = tl.load(bounds + (chunk + 1) * groups + group)
    for step in range(first, last):
        pair = tl.load(step_pair + step * P + m // BB)
        ok = own & (pair >= 0)
        d_row = (pair - first_pair) * B + b
        if BANK:
            run = tl.load(step_run + step)
            entry = entry_of(run, run_entry, first_run, SLOTS)
            skip = entry * C * D
            for first_width in range(0, length, BK):
                e = first_width + tl.arange(0, BK)
                acc = back_project(acc, d0, d_row, ok, w0 + skip, c, e, C, D, BC, BK, PRECISION)
                if TWO:
                    acc = back_project(acc, d1, d_row, ok, w1 + skip, c, e, C, D, BC, BK, PRECISION)
        else:
            acc += load_tile(d0, d_row, ok, c, c < C, D, D % BC == 0).to(tl.float32)
    # the rows again, from a number that the compiler does not know to be 0, as in attend
    m = tl.arange(0, BM) + tl.load(bounds + (chunk + 1) * groups + group, volatile=True) - last
    token = tl.load(tokens + group * P + m // BB)
    b = tl.program_id(2) * BB + m % BB
    row = token * B + b
    own = (token >= 0) & (b < B)
    tl.store(out + row[:, None] * C + c[None, :], acc, mask=own[:, None] & (c < C)[None, :])
