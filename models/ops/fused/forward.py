"""Triton kernels of the fused forward pass, and the products that backward shares with it.

Rows of a tile are tokens (or pairs) × samples, its columns the widths of HP heads next to each other, each
padded to EP. INTERPRETED: the interpreter's dot of bfloat16 multiplies raw bits, so it is given float32, and
its cast to bfloat16 truncates, so the bits are rounded before.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """x in dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def entry_of(run, run_entry, first_run, SLOTS: tl.constexpr):
    """The entry of a run, int64: with SLOTS the bank holds the entries of the runs from first_run on."""
    return (run - first_run).to(tl.int64) if SLOTS else tl.load(run_entry + run).to(tl.int64)


@triton.jit
def load_tile(x, row, ok, column, inside, D: tl.constexpr, EVEN: tl.constexpr):
    """x[row, column]; 0 where a row is not ok or, unless EVEN, a column not inside."""
    at = x + row[:, None] * D + column[None, :]
    if EVEN:
        tile = tl.load(at, mask=ok[:, None], other=0.0)
    else:
        tile = tl.load(at, mask=ok[:, None] & inside[None, :], other=0.0)
    return tile


@triton.jit
def load_rows(x, row, c, C: tl.constexpr, BK: tl.constexpr):
    """x[row, c], 0 beyond C. Rows have no mask, which would take registers: let a row be any that exists."""
    at = x + row[:, None] * C + c[None, :]
    return tl.load(at) if C % BK == 0 else tl.load(at, mask=(c < C)[None, :], other=0.0)


@triton.jit
def load_weight(w, c, column, real, C: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr):
    """w[c, column]; 0 outside, of which there is nothing where C % BK == 0 and WHOLE columns."""
    at = w + c[:, None] * D + column[None, :]
    if C % BK != 0:
        tile = tl.load(at, mask=(c < C)[:, None] & real[None, :], other=0.0)
    elif WHOLE:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=real[None, :], other=0.0)
    return tile


@triton.jit
def project(
    x, row, w, column, real, acc, length,
    C: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + x[row, :C]·w[:C, column]."""
    for first in range(0, length, BK):
        c = first + tl.arange(0, BK)
        a = load_rows(x, row, c, C, BK)
        acc = dot(a, load_weight(w, c, column, real, C, D, BK, WHOLE), acc, PRECISION)
    return acc


@triton.jit
def project_two(
    x, row, w0, w1, column, real, acc0, acc1, length,
    C: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc0 + x[row, :C]·w0[:C, column], and the same with w1: x is read once."""
    for first in range(0, length, BK):
        c = first + tl.arange(0, BK)
        a = load_rows(x, row, c, C, BK)
        acc0 = dot(a, load_weight(w0, c, column, real, C, D, BK, WHOLE), acc0, PRECISION)
        acc1 = dot(a, load_weight(w1, c, column, real, C, D, BK, WHOLE), acc1, PRECISION)
    return acc0, acc1


@triton.jit
def store_tile(x, row, ok, column, inside, D: tl.constexpr, EVEN: tl.constexpr, value):
    """x[row, column] = value, in the dtype of x."""
    at = x + row[:, None] * D + column[None, :]
    if EVEN:
        tl.store(at, round_to(value, x.dtype.element_ty), mask=ok[:, None])
    else:
        tl.store(at, round_to(value, x.dtype.element_ty), mask=ok[:, None] & inside[None, :])


@triton.jit
def head_sums(a, BM: tl.constexpr, HP: tl.constexpr, EP: tl.constexpr):
    """a [BM, HP·EP] → its sums over each head [BM, HP]."""
    return tl.sum(tl.reshape(a, [BM, HP, EP]), 2)


@triton.jit
def per_head(a, BM: tl.constexpr, HP: tl.constexpr, EP: tl.constexpr):
    """a [BM, HP] → [BM, HP·EP]."""
    return tl.reshape(tl.broadcast_to(a[:, :, None], [BM, HP, EP]), [BM, HP * EP])


@triton.jit
def cast_entries(bank, run_entry, out, first_run, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """out[r] = bank[run_entry[first_run + r]], in the dtype of out: entries of SIZE numbers."""
    slot = tl.program_id(1)
    entry = tl.load(run_entry + first_run + slot).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(bank + entry * SIZE + at, mask=at < SIZE)
    tl.store(out + slot.to(tl.int64) * SIZE + at, round_to(numbers, out.dtype.element_ty), mask=at < SIZE)


@triton.jit(do_not_specialize=["groups", "first_chunk", "last_chunk", "first_run", "length"])
def attend(
    xq, xk, xv, wq, wk, wv, tokens, bounds, step_run, step_pair, key, run_entry, kept_q, kept_k, kept_v, lse,
    out, B, groups, first_chunk, last_chunk, first_run, scale, length,
    C: tl.constexpr, HEADS: tl.constexpr, E: tl.constexpr,
    Q_BANK: tl.constexpr, K_BANK: tl.constexpr, V_BANK: tl.constexpr, JOINT: tl.constexpr,
    SLOTS: tl.constexpr, KEEP: tl.constexpr, RESUME: tl.constexpr,
    HP: tl.constexpr, EP: tl.constexpr, P: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax attention of P tokens × BB samples, HP heads: walks over the steps of a group of queries.

    q, k and v of a step stay in registers; the online softmax is the epilogue of their products. Writes
    lse [N, B, H] and the normalised out [N, B, D], float32; with RESUME it goes on from what they hold.
    JOINT: keys and values are projected together, from one source. KEEP: the projected ones are stored.
    """
    D: tl.constexpr = HEADS * E
    WHOLE: tl.constexpr = EP == E
    BM: tl.constexpr = P * BB
    group = tl.program_id(0)
    m = tl.arange(0, BM)
    b = tl.program_id(2) * BB + m % BB
    token = tl.load(tokens + group * P + m // BB)
    own = (token >= 0) & (b < B)
    row = token * B + b
    wide = tl.arange(0, HP * EP)
    column = (tl.program_id(1) * HP + wide // EP) * E + wide % EP
    real = wide % EP < E
    top = tl.full([BM, HP], -float("inf"), tl.float32)
    total = tl.zeros([BM, HP], tl.float32)
    o = tl.zeros([BM, HP * EP], tl.float32)
    if not Q_BANK:
        q = load_tile(xq, row, own, column, real, D, WHOLE)
    first = tl.load(bounds + first_chunk * groups + group)
    last = tl.load(bounds + last_chunk * groups + group)
    for step in range(first, last):
        run = tl.load(step_run + step)
        entry = entry_of(run, run_entry, first_run, SLOTS)
        pair = tl.load(step_pair + step * P + m // BB)
        ok = own & (pair >= 0)
        key_row = tl.load(key + pair, mask=ok, other=0) * B + tl.where(ok, b, 0)
        if Q_BANK:
            zero = tl.zeros([BM, HP * EP], tl.float32)
            w = wq + entry * C * D
            q = project(xq, tl.where(ok, row, 0), w, column, real, zero, length, C, D, BK, WHOLE, PRECISION)
            q = round_to(q, xq.dtype.element_ty)  # fewer registers; backward rounds the same
        zero = tl.zeros([BM, HP * EP], tl.float32)
        if JOINT:
            k, v = project_two(
                xk, key_row, wk + entry * C * D, wv + entry * C * D, column, real, zero, zero, length,
                C, D, BK, WHOLE, PRECISION,
            )  # fmt: skip
        elif K_BANK:
            w = wk + entry * C * D
            k = project(xk, key_row, w, column, real, zero, length, C, D, BK, WHOLE, PRECISION)
        else:
            k = load_tile(xk, key_row, ok, column, real, D, WHOLE)
        a = head_sums(q.to(tl.float32) * k, BM, HP, EP) * scale
        a = tl.where(ok[:, None], a, -float("inf"))
        new = tl.maximum(top, a)
        finite = tl.where(new == -float("inf"), 0.0, new)
        keep = tl.exp(top - finite)
        weight = tl.exp(a - finite)
        total = total * keep + weight
        top = new
        if KEEP:
            pair_row = pair.to(tl.int64) * B + b
            if Q_BANK:
                store_tile(kept_q, pair_row, ok, column, real, D, WHOLE, q)
            if K_BANK:
                store_tile(kept_k, pair_row, ok, column, real, D, WHOLE, k)
        if not JOINT:
            if V_BANK:
                w = wv + entry * C * D
                v = project(xv, key_row, w, column, real, zero, length, C, D, BK, WHOLE, PRECISION)
            else:
                v = load_tile(xv, key_row, ok, column, real, D, WHOLE)
        if KEEP and V_BANK:
            store_tile(kept_v, pair_row, ok, column, real, D, WHOLE, v)
        v = tl.where(ok[:, None], v, 0.0)
        o = o * per_head(keep, BM, HP, EP) + per_head(weight, BM, HP, EP) * v
    # m again, from a number that the compiler does not know to be 0: else it holds the addresses of the
    # results in registers over the loop
    m = tl.arange(0, BM) + tl.load(bounds + last_chunk * groups + group, volatile=True) - last
    token = tl.load(tokens + group * P + m // BB)
    b = tl.program_id(2) * BB + m % BB
    own = (token >= 0) & (b < B)
    row = token * B + b
    at = row[:, None] * HEADS + tl.program_id(1) * HP + tl.arange(0, HP)[None, :]
    if RESUME:
        before = tl.load(lse + at, mask=own[:, None], other=-float("inf"))
        new = tl.maximum(top, before)
        finite = tl.where(new == -float("inf"), 0.0, new)
        weight = tl.exp(before - finite)
        keep = tl.exp(top - finite)
        total = total * keep + weight
        top = new
        old = load_tile(out, row, own, column, real, D, WHOLE)
        o = o * per_head(keep, BM, HP, EP) + per_head(weight, BM, HP, EP) * old
    some = tl.where(total == 0.0, 1.0, total)
    store_tile(out, row, own, column, real, D, WHOLE, o / per_head(some, BM, HP, EP))
    tl.store(lse + at, top + tl.log(some), mask=own[:, None])
