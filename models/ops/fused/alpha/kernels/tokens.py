"""Triton kernels of the relative part: a bilinear form of narrow rows per pair and head, and its gradients.

    form_ij = ⟨left_i · W^left_δ, right_j · W^right_δ⟩ per head

left and right are [N, B, H·R], left of queries and right of keys; either bank may be absent. The narrow
width is padded to CHUNKS chunks of HB heads × RP numbers (RP ≥ R a power of two), WB = HB · RP columns.
A tile is BM rows: BM / BB pairs of one bank entry × BB samples. Projected rows never leave the registers.
"""

# ruff: noqa: RUF005, SIM102, SIM108 (kernels know neither starred tuples nor conditional expressions)
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
from __future__ import annotations

import os

import triton
import triton.language as tl

# the interpreter's tl.dot of bfloat16 multiplies the raw bits (triton 3.9, CPU), without a warning
UPCAST = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def product(a, b, sum, UPCAST: tl.constexpr):
    """sum + a · b in float32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="tf32x3")


@triton.jit
def rounded(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """x in another dtype, rounded to nearest; the interpreter would truncate to bfloat16."""
    if UPCAST:
        if dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def columns(first_head, H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of WIDTH padded ones from a head on, and whether they are there."""
    c = tl.arange(0, WIDTH)
    if RP == R:
        column = first_head * R + c
        return column, column < H * R
    head = first_head + c // RP
    return head * R + c % RP, (head < H) & (c % RP < R)


@triton.jit
def load_rows(
    x, row, ok, first_head, H: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, WIDTH: tl.constexpr
):
    column, there = columns(first_head, H, R, RP, WIDTH)
    mask = ok[:, None]
    if RP != R or H * R % WIDTH != 0:
        mask = mask & there[None, :]
    return tl.load(x + row[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def load_chunks(x, row, ok, geometry: tl.constexpr):
    """Rows as a tuple of chunks [BM, WB]."""
    H: tl.constexpr = geometry[0]
    R: tl.constexpr = geometry[1]
    RP: tl.constexpr = geometry[2]
    HB: tl.constexpr = geometry[3]
    CHUNKS: tl.constexpr = geometry[4]
    chunks = ()
    for n in tl.static_range(CHUNKS):
        chunks = chunks + (load_rows(x, row, ok, n * HB, H, R, RP, HB * RP),)
    return chunks


@triton.jit
def load_entry(w, entry, k, n, geometry: tl.constexpr, ROWS: tl.constexpr):
    """Chunk n of the columns of a bank entry, ROWS rows from head k · HB on: [ROWS, WB]."""
    H: tl.constexpr = geometry[0]
    R: tl.constexpr = geometry[1]
    RP: tl.constexpr = geometry[2]
    HB: tl.constexpr = geometry[3]
    row, row_there = columns(k * HB, H, R, RP, ROWS)
    column, column_there = columns(n * HB, H, R, RP, HB * RP)
    at = (entry * (H * R) + row)[:, None] * (H * R) + column[None, :]
    if RP == R and H * R % ROWS == 0 and H * R % (HB * RP) == 0:
        tile = tl.load(w + at)
    else:
        tile = tl.load(w + at, mask=row_there[:, None] & column_there[None, :], other=0.0)
    return tile


@triton.jit
def project(chunks, w, entry, n, geometry: tl.constexpr, BM: tl.constexpr, UPCAST: tl.constexpr):
    """Chunk n of rows · W, in the dtype of the rows: [BM, WB]."""
    WB: tl.constexpr = geometry[2] * geometry[3]
    CHUNKS: tl.constexpr = geometry[4]
    projected = tl.zeros([BM, WB], tl.float32)
    for k in tl.static_range(CHUNKS):
        projected = product(chunks[k], load_entry(w, entry, k, n, geometry, WB), projected, UPCAST)
    return projected


@triton.jit
def head_sums(t, geometry: tl.constexpr, BM: tl.constexpr):
    """[BM, WB] → [BM, HB]."""
    return tl.sum(tl.reshape(t, [BM, geometry[3], geometry[2]]), 2)


@triton.jit
def times_heads(t, weight, geometry: tl.constexpr, BM: tl.constexpr):
    """[BM, WB] with each head's columns times weight [BM, HB]."""
    weighted = tl.reshape(t, [BM, geometry[3], geometry[2]]) * weight[:, :, None]
    return tl.reshape(weighted, [BM, geometry[2] * geometry[3]])


@triton.jit
def head_places(pair, b, ok, n, B, geometry: tl.constexpr):
    """Places [BM, HB] in [pairs, H, B] of the heads of chunk n, and whether they are there."""
    head = n * geometry[3] + tl.arange(0, geometry[3])
    at = (pair[:, None] * geometry[0] + head[None, :]) * B + b[:, None]
    there = tl.broadcast_to(ok[:, None], at.shape)
    if geometry[0] % geometry[3] != 0:
        there = there & (head < geometry[0])[None, :]
    return at, there


@triton.jit
def form_kernel(
    left, right, left_bank, right_bank, owners, bounds, entries, partners, out,
    B, N, first, left_stride, right_stride, left_batch, right_batch, scale,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, PARTS: tl.constexpr, GEOMETRY: tl.constexpr,
    BM: tl.constexpr, BB: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """scale · form of every pair → out[queries, N, H, B]; a program owns BM / BB queries × BB samples."""
    P: tl.constexpr = BM // BB
    CHUNKS: tl.constexpr = GEOMETRY[4]
    group = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    m = tl.arange(0, BM)
    b = tl.program_id(1) * BB + m % BB
    query = tl.load(owners + group * P + m // BB)
    own = (query >= 0) & (b < B)
    lefts = load_chunks(left, query * left_stride + b * left_batch, own, GEOMETRY)
    start = tl.load(bounds + group * (PARTS + 1) + part)
    stop = tl.load(bounds + group * (PARTS + 1) + part + 1)
    for step in range(start, stop):
        entry = tl.load(entries + step)
        key = tl.load(partners + step * P + m // BB)
        ok = own & (key >= 0)
        rights = load_chunks(right, key * right_stride + b * right_batch, ok, GEOMETRY)
        pair = (query - first) * N + key
        for n in tl.static_range(CHUNKS):
            if LEFT:
                q = project(lefts, left_bank, entry, n, GEOMETRY, BM, UPCAST)
            else:
                q = lefts[n].to(tl.float32)
            if RIGHT:
                k = project(rights, right_bank, entry, n, GEOMETRY, BM, UPCAST)
            else:
                k = rights[n].to(tl.float32)
            at, there = head_places(pair, b, ok, n, B, GEOMETRY)
            tl.store(out + at, head_sums(q * k, GEOMETRY, BM) * scale, mask=there)


@triton.jit
def token_sums_kernel(
    weight, rows, row_bank, out_bank, owners, bounds, entries, partners, out,
    B, N, first, out_first, row_stride, row_batch, out_part, scale,
    QUERIES: tl.constexpr, ROW_BANK: tl.constexpr, OUT_BANK: tl.constexpr, PARTS: tl.constexpr,
    GEOMETRY: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """scale · Σ over an owner's pairs of (weight ⊗ (rows · W^row)) · W^outᵀ → out[PARTS, owners, B, H·R].

    The owners are queries and the rows are keys', or the other way round.
    """
    P: tl.constexpr = BM // BB
    WB: tl.constexpr = GEOMETRY[2] * GEOMETRY[3]
    CHUNKS: tl.constexpr = GEOMETRY[4]
    D: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    group = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    m = tl.arange(0, BM)
    b = tl.program_id(1) * BB + m % BB
    owner = tl.load(owners + group * P + m // BB)
    own = (owner >= 0) & (b < B)
    sums = ()
    for _n in tl.static_range(CHUNKS):
        sums = sums + (tl.zeros([BM, WB], tl.float32),)
    start = tl.load(bounds + group * (PARTS + 1) + part)
    stop = tl.load(bounds + group * (PARTS + 1) + part + 1)
    for step in range(start, stop):
        entry = tl.load(entries + step)
        other = tl.load(partners + step * P + m // BB)
        ok = own & (other >= 0)
        row = other * row_stride + b * row_batch
        if ROW_BANK:
            chunks = load_chunks(rows, row, ok, GEOMETRY)
        if QUERIES:
            pair = (owner - first) * N + other
        else:
            pair = (other - first) * N + owner
        for n in tl.static_range(CHUNKS):
            if ROW_BANK:
                t = project(chunks, row_bank, entry, n, GEOMETRY, BM, UPCAST)
            else:
                t = load_rows(rows, row, ok, n * GEOMETRY[3], GEOMETRY[0], GEOMETRY[1], GEOMETRY[2], WB)
                t = t.to(tl.float32)
            at, there = head_places(pair, b, ok, n, B, GEOMETRY)
            w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
            t = times_heads(t, w, GEOMETRY, BM)
            new = ()
            if OUT_BANK:
                t = rounded(t, rows.dtype.element_ty, UPCAST)
                for k in tl.static_range(CHUNKS):
                    entry_T = tl.trans(load_entry(out_bank, entry, k, n, GEOMETRY, WB))
                    new = new + (product(t, entry_T, sums[k], UPCAST),)
            else:
                for k in tl.static_range(CHUNKS):
                    if k == n:
                        new = new + (sums[k] + t,)
                    else:
                        new = new + (sums[k],)
            sums = new
    row = part * out_part + ((owner - out_first) * B + b) * D
    for n in tl.static_range(CHUNKS):
        column, there = columns(n * GEOMETRY[3], GEOMETRY[0], GEOMETRY[1], GEOMETRY[2], WB)
        at = row[:, None] + column[None, :]
        tl.store(out + at, sums[n] * scale, mask=own[:, None] & there[None, :])


@triton.jit
def add_parts(parts, out, SIZE, PARTS: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * SIZE + at, mask=at < SIZE, other=0.0)
    tl.store(out + at, rounded(total, out.dtype.element_ty, UPCAST), mask=at < SIZE)


@triton.jit
def part_sums_kernel(
    parts0, parts1, parts2, out0, out1, out2, size0, size1, size2,
    PARTS0: tl.constexpr, PARTS1: tl.constexpr, PARTS2: tl.constexpr,
    BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Σ over the parts of up to three parts[PARTS, size] → out[size] each; a program owns a block of one."""
    which = tl.program_id(1)
    if which == 0:
        add_parts(parts0, out0, size0, PARTS0, BLOCK, UPCAST)
    if which == 1:
        add_parts(parts1, out1, size1, PARTS1, BLOCK, UPCAST)
    if which == 2:
        add_parts(parts2, out2, size2, PARTS2, BLOCK, UPCAST)
