"""The element-wise kernels between grouped products, in Triton.

Row r of a chunk is pair r // S and sample r % S, of S samples. Sums run in a fixed order in registers,
without atomics, so that two runs end with the same bits. Addresses are 64 bits wide.
"""

import triton
import triton.language as tl


@triton.jit
def _row(pair, token, sample, S, B, start, BY_PAIR: tl.constexpr):
    """The row of an operand: of the pair, or of the token in its source [N, B, D]."""
    return pair.to(tl.int64) * S + sample if BY_PAIR else token.to(tl.int64) * B + start + sample


@triton.jit
def merge(
    q, k, v, lse, out, first, pair, key, S, B, start, q_row, k_row, v_row, scale,
    H: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BS: tl.constexpr,
    Q_PAIR: tl.constexpr, K_PAIR: tl.constexpr, V_PAIR: tl.constexpr,
):  # fmt: skip
    """Merges a chunk's pairs into the running softmax of one query and head, for BS samples."""
    i, h = tl.program_id(0), tl.program_id(1)
    b = tl.program_id(2) * BS + tl.arange(0, BS)
    e = tl.arange(0, EP)
    here = b < S
    both = here[:, None] & (e < E)[None, :]
    column = (h * E + e)[None, :]
    begin, end = tl.load(first + i), tl.load(first + i + 1)
    if begin < end:
        state = (i.to(tl.int64) * B + start + b) * H + h
        m = tl.load(lse + state, here, other=float("-inf"))
        at_out = out + state[:, None] * E + e[None, :]
        o = tl.load(at_out, both, other=0.0)
        total = tl.where(m == float("-inf"), 0.0, 1.0)
        for t in range(begin, end):
            p = tl.load(pair + t)
            j = tl.load(key + p)
            at_q = _row(p, i, b, S, B, start, Q_PAIR)
            at_k, at_v = _row(p, j, b, S, B, start, K_PAIR), _row(p, j, b, S, B, start, V_PAIR)
            q_b = tl.load(q + at_q[:, None] * q_row + column, both, other=0.0).to(tl.float32)
            k_b = tl.load(k + at_k[:, None] * k_row + column, both, other=0.0).to(tl.float32)
            v_b = tl.load(v + at_v[:, None] * v_row + column, both, other=0.0).to(tl.float32)
            a = tl.sum(q_b * k_b, 1) * scale
            new = tl.maximum(m, a)
            keep, weight = tl.exp(m - new), tl.exp(a - new)
            o = o * keep[:, None] + v_b * weight[:, None]
            total = total * keep + weight
            m = new
        tl.store(lse + state, m + tl.log(total), here)
        tl.store(at_out, o / total[:, None], both)


@triton.jit
def gradients(
    q, k, v, dq, dk, dv, lse, delta, dout, query, key, rows, S, B, start,
    q_row, k_row, v_row, dq_row, dk_row, dv_row, scale,
    H: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BR: tl.constexpr,
    Q_PAIR: tl.constexpr, K_PAIR: tl.constexpr, V_PAIR: tl.constexpr,
):  # fmt: skip
    """∂q, ∂k, ∂v of BR rows and one head; they may overwrite q, k, v."""
    h = tl.program_id(1)
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    e = tl.arange(0, EP)
    here = r < rows
    both = here[:, None] & (e < E)[None, :]
    column = (h * E + e)[None, :]
    p, b = r // S, r % S
    i, j = tl.load(query + p, here, other=0), tl.load(key + p, here, other=0)
    at_q = _row(p, i, b, S, B, start, Q_PAIR)
    at_k, at_v = _row(p, j, b, S, B, start, K_PAIR), _row(p, j, b, S, B, start, V_PAIR)
    state = (i.to(tl.int64) * B + start + b) * H + h
    q_r = tl.load(q + at_q[:, None] * q_row + column, both, other=0.0).to(tl.float32)
    k_r = tl.load(k + at_k[:, None] * k_row + column, both, other=0.0).to(tl.float32)
    v_r = tl.load(v + at_v[:, None] * v_row + column, both, other=0.0).to(tl.float32)
    g_r = tl.load(dout + state[:, None] * E + e[None, :], both, other=0.0).to(tl.float32)
    weight = tl.exp(tl.sum(q_r * k_r, 1) * scale - tl.load(lse + state, here, other=0.0))
    slope = weight * (tl.sum(g_r * v_r, 1) - tl.load(delta + state, here, other=0.0)) * scale
    tl.store(dq + r[:, None] * dq_row + column, (slope[:, None] * k_r).to(dq.dtype.element_ty), both)
    tl.store(dk + r[:, None] * dk_row + column, (slope[:, None] * q_r).to(dk.dtype.element_ty), both)
    tl.store(dv + r[:, None] * dv_row + column, (weight[:, None] * g_r).to(dv.dtype.element_ty), both)


@triton.jit
def sum_rows(rows, total, first, pair, S, B, start, row, width, BS: tl.constexpr, BC: tl.constexpr):
    """Adds the rows of a token's pairs to its total[N, B, width], BS samples and BC columns."""
    n = tl.program_id(0)
    b = tl.program_id(1) * BS + tl.arange(0, BS)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    both = (b < S)[:, None] & (c < width)[None, :]
    begin, end = tl.load(first + n), tl.load(first + n + 1)
    if begin < end:
        at = total + (n.to(tl.int64) * B + start + b)[:, None] * width + c[None, :]
        acc = tl.load(at, both, other=0.0)
        for t in range(begin, end):
            p = tl.load(pair + t).to(tl.int64)
            acc += tl.load(rows + (p * S + b)[:, None] * row + c[None, :], both, other=0.0).to(tl.float32)
        tl.store(at, acc, both)


@triton.jit
def gather(bank_0, bank_1, bank_2, packed, entries, numbers, D, packed_row, BLOCK: tl.constexpr):
    """Copies entries [C, D] of up to three banks side by side into packed[G, C, banks·D]."""
    g, n = tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < numbers
    source = tl.load(entries + g).to(tl.int64) * numbers + at
    if n == 0:
        w = tl.load(bank_0 + source, here)
    elif n == 1:
        w = tl.load(bank_1 + source, here)
    else:
        w = tl.load(bank_2 + source, here)
    target = g.to(tl.int64) * (numbers // D) * packed_row + at // D * packed_row + n * D + at % D
    tl.store(packed + target, w.to(packed.dtype.element_ty), here)


@triton.jit
def scatter(
    product_0, product_1, product_2, total_0, total_1, total_2, entries, again, numbers, D,
    row_0, row_1, row_2, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes products [G, C, D] to the entries of up to three totals, or adds them where `again`."""
    g, n = tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < numbers
    line, column = g.to(tl.int64) * (numbers // D) + at // D, at % D
    if n == 0:
        w = tl.load(product_0 + line * row_0 + column, here).to(tl.float32)
        target = total_0
    elif n == 1:
        w = tl.load(product_1 + line * row_1 + column, here).to(tl.float32)
        target = total_1
    else:
        w = tl.load(product_2 + line * row_2 + column, here).to(tl.float32)
        target = total_2
    target += tl.load(entries + g).to(tl.int64) * numbers + at
    if tl.load(again + g) != 0:
        w += tl.load(target, here).to(tl.float32)
    tl.store(target, w.to(total_0.dtype.element_ty), here)
