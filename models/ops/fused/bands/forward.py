"""Triton kernels of bands, forward: the rows' products, and attention over the bands of all entries.

A program of attention owns BQ tokens of one sample and head. It visits the blocks that they are in, and in
each the tiles of BK keys that they meet. All tiles take the same kernel: tables say which they are.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from models.ops.fused.forward import dot, load_tile, project, round_to, store_tile


@triton.jit(do_not_specialize=["length"])
def project_rows(
    x, w0, w1, tokens, run_start, run_entry, tile_run, tile_first, out0, out1, B, length,
    C: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """x [N, B, C] of BM rows (row of a run, sample) times their entry, BD columns → out [rows, B, D]; the
    third axis of the grid is w0 or w1."""
    run = tl.load(tile_run + tl.program_id(0))
    m = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, BM)
    row = tl.load(run_start + run) + m // B
    ok = row < tl.load(run_start + run + 1)
    token = tl.load(tokens + row, mask=ok, other=0)
    w = w0
    out = out0
    if tl.program_id(2) == 1:
        w = w1
        out = out1
    w += tl.load(run_entry + run).to(tl.int64) * C * D
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    real = column < D
    zero = tl.zeros([BM, BD], tl.float32)
    acc = project(x, token * B + m % B, w, column, real, zero, length, C, D, BK, D % BD == 0, PRECISION)
    # the rows again, from a number that the compiler does not know to be the same, as in fused.attend
    m = tl.load(tile_first + tl.program_id(0), volatile=True) + tl.arange(0, BM)
    row = tl.load(run_start + run) + m // B
    ok = row < tl.load(run_start + run + 1)
    store_tile(out, row.to(tl.int64) * B + m % B, ok, column, real, D, D % BD == 0, acc)


@triton.jit
def in_band(query, key, block, place, band, N, DIMS: tl.constexpr):
    """[queries, keys]: whether the offset of two tokens is in the block's band along all dimensions."""
    inside = (query[:, None] >= 0) & (key[None, :] >= 0)
    for d in tl.static_range(DIMS):
        delta = tl.load(place + d * N + query)[:, None] - tl.load(place + d * N + key)[None, :]
        least = tl.load(band + (block * DIMS + d) * 2)
        greatest = tl.load(band + (block * DIMS + d) * 2 + 1)
        inside = inside & (delta >= least) & (delta <= greatest)
    return inside


@triton.jit
def attend(
    q, k, v, tokens, visits, visit_block, steps, step_tile, tile_tokens, query_row, key_row, place, band,
    lse, out, B, N, scale,
    HEADS: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    DIMS: tl.constexpr, Q_BANK: tl.constexpr, K_BANK: tl.constexpr, V_BANK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax attention of BQ tokens, one head of one sample: lse [N, B, H] and the normalised out [N, B, D].

    q, k and v are rows [rows, B, D] of the blocks, or without a bank the tokens' [N, B, D].
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
    top = tl.full([BQ], -float("inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    o = tl.zeros([BQ, EP], tl.float32)
    at = token.to(tl.int64) * B + b
    if not Q_BANK:
        q_tile = load_tile(q, at, own, column, wide < E, D, WHOLE)
    first = tl.load(visits + tl.program_id(0))
    last = tl.load(visits + tl.program_id(0) + 1)
    for visit in range(first, last):
        block = tl.load(visit_block + visit)
        row = tl.load(query_row + block * N + token, mask=own, other=-1)
        here = row >= 0
        if Q_BANK:
            q_tile = load_tile(q, row.to(tl.int64) * B + b, here, column, wide < E, D, WHOLE)
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
            ok = here[:, None] & there[None, :] & in_band(token, key, block, place, band, N, DIMS)
            a = dot(q_tile, tl.trans(k_tile), tl.zeros([BQ, BK], tl.float32), PRECISION) * scale
            a = tl.where(ok, a, -float("inf"))
            new = tl.maximum(top, tl.max(a, 1))
            finite = tl.where(new == -float("inf"), 0.0, new)
            keep = tl.exp(top - finite)
            p = tl.exp(a - finite[:, None])
            total = total * keep + tl.sum(p, 1)
            top = new
            v_tile = load_tile(v, v_at, there, column, wide < E, D, WHOLE)
            o = dot(round_to(p, v.dtype.element_ty), v_tile, o * keep[:, None], PRECISION)
    some = tl.where(total == 0.0, 1.0, total)
    store_tile(out, at, own, column, wide < E, D, WHOLE, o / some[:, None])
    tl.store(lse + at * HEADS + head, top + tl.log(some), mask=own)
