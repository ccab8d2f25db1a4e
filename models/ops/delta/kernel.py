"""Triton kernel of the inner products of two tensors' rows."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inner(a, b, row, ROWS_THERE, E: tl.constexpr, EP: tl.constexpr):
    """⟨a, b⟩ of rows of E numbers, padded to EP."""
    e = tl.arange(0, EP)
    at = row.to(tl.int64)[:, None] * E + e[None, :]
    there = (row < ROWS_THERE)[:, None] & (e < E)[None, :]
    left = tl.load(a + at, mask=there, other=0.0).to(tl.float32)
    right = tl.load(b + at, mask=there, other=0.0).to(tl.float32)
    return tl.sum(left * right, 1)


@triton.jit
def row_dots_kernel(
    a0, b0, a1, b1, out, rows,
    E0: tl.constexpr, EP0: tl.constexpr, E1: tl.constexpr, EP1: tl.constexpr,
    TWO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out[rows] = ⟨a0, b0⟩ of rows of E0 numbers, with TWO plus ⟨a1, b1⟩ of rows of E1."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = inner(a0, b0, row, rows, E0, EP0)
    if TWO:
        total += inner(a1, b1, row, rows, E1, EP1)
    tl.store(out + row, total, mask=row < rows)
