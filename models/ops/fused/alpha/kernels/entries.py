"""Triton kernel of the relative part's backward pass that owns bank entries.

A program walks over the pairs of one segment of an entry's with the entry's matrices on the chip, and sums
their gradients in registers. On the way it finishes the softmax weights P and the logits' gradients
dS = P (dP − delta), which the dense part reads too.
"""

# ruff: noqa: RUF005 (kernels know no starred tuples)
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from models.ops.fused.alpha.kernels.tokens import (
    columns,
    head_places,
    head_sums,
    load_entry,
    load_rows,
    product,
    rounded,
    times_heads,
)


@triton.jit
def entry_chunks(w, entry, PRESENT: tl.constexpr, geometry: tl.constexpr, KP: tl.constexpr):
    """The chunks [KP, WB] of an entry's columns as a tuple; empty without a bank."""
    CHUNKS: tl.constexpr = geometry[4]
    chunks = ()
    if PRESENT:
        for n in tl.static_range(CHUNKS):
            chunks = chunks + (load_entry(w, entry, 0, n, geometry, KP),)
    return chunks


@triton.jit
def wide_rows(x, row, ok, PRESENT: tl.constexpr, geometry: tl.constexpr, KP: tl.constexpr):
    """Whole rows, padded to KP columns: [BM, KP]."""
    if PRESENT:
        x = load_rows(x, row, ok, 0, geometry[0], geometry[1], geometry[2], KP)
    return x


@triton.jit
def narrow_rows(
    x,
    wide,
    row,
    ok,
    n,
    chunks,
    BANK: tl.constexpr,
    geometry: tl.constexpr,
    BM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Chunk n of rows · W, or of the rows themselves: [BM, WB]."""
    WB: tl.constexpr = geometry[2] * geometry[3]
    if BANK:
        return product(wide, chunks[n], tl.zeros([BM, WB], tl.float32), UPCAST)
    return load_rows(x, row, ok, n * geometry[3], geometry[0], geometry[1], geometry[2], WB).to(tl.float32)


@triton.jit
def zero_chunks(PRESENT: tl.constexpr, geometry: tl.constexpr, KP: tl.constexpr):
    CHUNKS: tl.constexpr = geometry[4]
    chunks = ()
    if PRESENT:
        for _n in tl.static_range(CHUNKS):
            chunks = chunks + (tl.zeros([KP, geometry[2] * geometry[3]], tl.float32),)
    return chunks


@triton.jit
def add_outer(sums, n: tl.constexpr, x, grad, geometry: tl.constexpr, UPCAST: tl.constexpr):
    """sums with xᵀ · grad added to chunk n."""
    CHUNKS: tl.constexpr = geometry[4]
    new = ()
    for k in tl.static_range(CHUNKS):
        if k == n:
            new = new + (product(tl.trans(x), rounded(grad, x.dtype, UPCAST), sums[k], UPCAST),)
        else:
            new = new + (sums[k],)
    return new


@triton.jit
def store_entry(out, slot, sums, geometry: tl.constexpr, KP: tl.constexpr):
    H: tl.constexpr = geometry[0]
    R: tl.constexpr = geometry[1]
    RP: tl.constexpr = geometry[2]
    HB: tl.constexpr = geometry[3]
    CHUNKS: tl.constexpr = geometry[4]
    row, row_there = columns(0, H, R, RP, KP)
    for n in tl.static_range(CHUNKS):
        column, column_there = columns(n * HB, H, R, RP, HB * RP)
        at = (slot * (H * R) + row)[:, None] * (H * R) + column[None, :]
        there = row_there[:, None] & column_there[None, :]
        tl.store(out + at, sums[n].to(out.dtype.element_ty), mask=there)


@triton.jit
def logit_gradients_kernel(
    query_rows, key_rows, query_bank, key_bank, logits, grad_weights, queries, keys, segments,
    weights, grad_logits, grad_query_bank, grad_key_bank,
    B, N, first, L, query_stride, key_stride, query_batch, key_batch, scale,
    QUERY_BANK: tl.constexpr, KEY_BANK: tl.constexpr, QUERY_SUMS: tl.constexpr, KEY_SUMS: tl.constexpr,
    GEOMETRY: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """P, dS and the sums of the query and key banks' gradients over one segment of an entry's pairs.

    logits [queries, N, H, B] is log P without the form scale · ⟨query, key⟩; grad_weights is dP − delta. The
    sums are those of QUERY_SUMS and KEY_SUMS.
    """
    CHUNKS: tl.constexpr = GEOMETRY[4]
    segment = tl.program_id(0)
    entry = tl.load(segments + segment)
    start = tl.load(segments + L + segment)
    stop = tl.load(segments + 2 * L + segment)
    m = tl.arange(0, BM)
    query_chunks = entry_chunks(query_bank, entry, QUERY_BANK, GEOMETRY, KP)
    key_chunks = entry_chunks(key_bank, entry, KEY_BANK, GEOMETRY, KP)
    query_sums = zero_chunks(QUERY_SUMS, GEOMETRY, KP)
    key_sums = zero_chunks(KEY_SUMS, GEOMETRY, KP)
    rounds = (B + BB - 1) // BB
    tiles = (stop - start + BM // BB - 1) // (BM // BB) * rounds
    tl.assume(tiles > 0)  # no segment is empty; without it the sums are kept twice, and spill
    for tile in range(tiles):
        place = start + tile // rounds * (BM // BB) + m // BB
        b = tile % rounds * BB + m % BB
        ok = (place < stop) & (b < B)
        query = tl.load(queries + place, mask=ok, other=0)
        key = tl.load(keys + place, mask=ok, other=0)
        query_row = query * query_stride + b * query_batch
        key_row = key * key_stride + b * key_batch
        pair = (query - first) * N + key
        wide_query = wide_rows(query_rows, query_row, ok, QUERY_BANK, GEOMETRY, KP)
        wide_key = wide_rows(key_rows, key_row, ok, KEY_BANK, GEOMETRY, KP)
        for n in tl.static_range(CHUNKS):
            at, there = head_places(pair, b, ok, n, B, GEOMETRY)
            q = narrow_rows(
                query_rows, wide_query, query_row, ok, n, query_chunks, QUERY_BANK, GEOMETRY, BM, UPCAST
            )
            k = narrow_rows(key_rows, wide_key, key_row, ok, n, key_chunks, KEY_BANK, GEOMETRY, BM, UPCAST)
            p = tl.exp(tl.load(logits + at, mask=there, other=0.0) + head_sums(q * k, GEOMETRY, BM) * scale)
            tl.store(weights + at, rounded(p, weights.dtype.element_ty, UPCAST), mask=there)
            ds = p * tl.load(grad_weights + at, mask=there, other=0.0).to(tl.float32)
            tl.store(grad_logits + at, rounded(ds, grad_logits.dtype.element_ty, UPCAST), mask=there)
            if QUERY_SUMS:
                grad_q = times_heads(k, ds * scale, GEOMETRY, BM)
                query_sums = add_outer(query_sums, n, wide_query, grad_q, GEOMETRY, UPCAST)
            if KEY_SUMS:
                grad_k = times_heads(q, ds * scale, GEOMETRY, BM)
                key_sums = add_outer(key_sums, n, wide_key, grad_k, GEOMETRY, UPCAST)
    slot = tl.load(segments + 3 * L + segment)
    if QUERY_SUMS:
        store_entry(grad_query_bank, slot, query_sums, GEOMETRY, KP)
    if KEY_SUMS:
        store_entry(grad_key_bank, slot, key_sums, GEOMETRY, KP)


@triton.jit
def bank_sums_kernel(
    weight, query_rows, key_rows, queries, keys, segments, grad_bank,
    B, N, first, L, query_stride, key_stride, query_batch, key_batch,
    GEOMETRY: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Σ key_jᵀ · (weight_ij ⊗ query_i) over one segment of an entry's pairs → grad_bank[slot]."""
    WB: tl.constexpr = GEOMETRY[2] * GEOMETRY[3]
    CHUNKS: tl.constexpr = GEOMETRY[4]
    segment = tl.program_id(0)
    start = tl.load(segments + L + segment)
    stop = tl.load(segments + 2 * L + segment)
    m = tl.arange(0, BM)
    sums = zero_chunks(True, GEOMETRY, KP)
    rounds = (B + BB - 1) // BB
    tiles = (stop - start + BM // BB - 1) // (BM // BB) * rounds
    tl.assume(tiles > 0)  # no segment is empty; without it the sums are kept twice, and spill
    for tile in range(tiles):
        place = start + tile // rounds * (BM // BB) + m // BB
        b = tile % rounds * BB + m % BB
        ok = (place < stop) & (b < B)
        query = tl.load(queries + place, mask=ok, other=0)
        key = tl.load(keys + place, mask=ok, other=0)
        pair = (query - first) * N + key
        wide_key = wide_rows(key_rows, key * key_stride + b * key_batch, ok, True, GEOMETRY, KP)
        for n in tl.static_range(CHUNKS):
            at, there = head_places(pair, b, ok, n, B, GEOMETRY)
            w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
            g = load_rows(
                query_rows, query * query_stride + b * query_batch, ok, n * GEOMETRY[3],
                GEOMETRY[0], GEOMETRY[1], GEOMETRY[2], WB,
            ).to(tl.float32)  # fmt: skip
            sums = add_outer(sums, n, wide_key, times_heads(g, w, GEOMETRY, BM), GEOMETRY, UPCAST)
    store_entry(grad_bank, tl.load(segments + 3 * L + segment), sums, GEOMETRY, KP)


@triton.jit
def segment_sums_kernel(parts, bounds, out, SIZE, BLOCK: tl.constexpr):
    """Σ over an entry's segments of parts[L, SIZE] → out[K, SIZE]; 0 for an entry without any."""
    entry = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for segment in range(tl.load(bounds + entry), tl.load(bounds + entry + 1)):
        total += tl.load(parts + segment * SIZE + at, mask=at < SIZE, other=0.0)
    tl.store(out + entry * SIZE + at, total.to(out.dtype.element_ty), mask=at < SIZE)
