"""What the launches of α-Translution's operators cost, counted from their arguments' shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.fused.alpha import dense, relative  # noqa: F401 (they define the operators)
from models.ops.fused.alpha.tiles import dense_tile, entry_tile, geometry, owner_tile, sums_at_once
from models.ops.kernel_cost import COSTS, KernelCost

SECTOR = 32  # bytes that the cache reads or writes at a time


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _form(
    left: Tensor,
    right: Tensor,
    left_bank: Tensor | None,
    right_bank: Tensor | None,
    steps: list[Tensor],
    heads: int,
    scale: float,
    first: int,
    queries: int,
    pairs: int,
) -> list[KernelCost]:
    """A step reads its rows once and the entries of both banks; a program reads its queries' rows once."""
    owners, bounds, *_ = steps
    B, size = right.shape[1], right.element_size()
    out = pairs * B * heads * 4
    programs_rows = owners.numel() * (bounds.shape[1] - 1) * B * left.shape[2] * size
    rows = pairs * B * right.shape[2] * size
    entries = _step_entries(right, steps, left_bank, right_bank)
    memory = _bytes(left, right, left_bank, right_bank, *steps) + out
    cache = programs_rows + rows + entries + _table_bytes(right, steps) + out
    return [KernelCost(memory, cache, _step_flops(right, steps, heads, left_bank, right_bank))]


def _token_sums(
    weight: Tensor,
    rows: Tensor,
    row_bank: Tensor | None,
    out_bank: Tensor | None,
    steps: list[Tensor],
    heads: int,
    scale: float,
    first: int,
    of_queries: bool,
    pairs: int,
) -> list[KernelCost]:
    """A step reads weights, rows and entries; the sum of each part of a token's pairs is written."""
    parts, (B, D) = steps[1].shape[1] - 1, rows.shape[1:]
    weights = pairs * B * heads * weight.element_size()
    out = parts * _token_numbers(weight, rows, of_queries) * 4
    entries = _step_entries(rows, steps, row_bank, out_bank)
    memory = _bytes(rows, row_bank, out_bank, *steps) + weights + out
    cache = pairs * B * D * rows.element_size() + weights + entries + _table_bytes(rows, steps) + out
    return [KernelCost(memory, cache, _step_flops(rows, steps, heads, row_bank, out_bank))]


def _part_sums(parts: list[Tensor], dtype: torch.dtype) -> list[KernelCost]:
    moved = sum(_bytes(part) + part[0].numel() * dtype.itemsize for part in parts)
    return [KernelCost(moved, moved, 0)]


def _token_numbers(weight: Tensor, rows: Tensor, of_queries: bool) -> int:
    return (weight if of_queries else rows).shape[0] * rows.shape[1] * rows.shape[2]


def _logit_gradients(
    query: Tensor,
    key: Tensor,
    query_bank: Tensor | None,
    key_bank: Tensor | None,
    logits: Tensor,
    grad_weights: Tensor,
    runs: list[Tensor],
    heads: int,
    scale: float,
    first: int,
) -> list[KernelCost]:
    """Reads the logits and dP, writes P and dS; entries are read once a segment and their sums written."""
    pairs, segments = runs[0].numel(), runs[2].shape[1]
    B, D, size = *query.shape[1:], query.element_size()
    pair_bytes = pairs * B * heads * (4 + 3 * grad_weights.element_size())
    banks = [bank for bank in (query_bank, key_bank) if bank is not None]
    sums = len(banks) * segments * D * D
    memory = _bytes(query, key, *banks, *runs) + pair_bytes + sums * 4
    cache = 2 * pairs * B * D * size + pair_bytes + sums * (4 + size) + _bytes(*runs)
    launches = sums_at_once(entry_tile(query), query_bank is not None, key_bank is not None)
    products = [len(banks) + sum(launch) for launch in launches]
    return [KernelCost(memory, cache, count * _outer_flops(query, runs, heads)) for count in products]


def _bank_sums(
    weight: Tensor, query: Tensor, key: Tensor, runs: list[Tensor], heads: int, first: int
) -> list[KernelCost]:
    pairs, segments = runs[0].numel(), runs[2].shape[1]
    B, D, size = *query.shape[1:], query.element_size()
    weights, sums = pairs * B * heads * weight.element_size(), segments * D * D * 4
    memory = _bytes(query, key, *runs) + weights + sums
    cache = 2 * pairs * B * D * size + weights + sums + _bytes(*runs)
    return [KernelCost(memory, cache, _outer_flops(query, runs, heads))]


def _segment_sums(parts: Tensor, bounds: Tensor, dtype: torch.dtype) -> list[KernelCost]:
    out = (bounds.shape[0] - 1) * parts.shape[1] ** 2 * dtype.itemsize
    return [KernelCost(_bytes(parts) + out, _bytes(parts) + out, 0)]


def _step_entries(rows: Tensor, steps: list[Tensor], *banks: Tensor | None) -> int:
    """Bytes of the entries that all programs load: one of each bank a step."""
    blocks = -(-rows.shape[1] // owner_tile(rows).samples(rows.shape[1]))
    used = sum(bank is not None for bank in banks)
    return steps[2].numel() * blocks * used * rows.shape[2] ** 2 * rows.element_size()


def _table_bytes(rows: Tensor, steps: list[Tensor]) -> int:
    return _bytes(*steps) * -(-rows.shape[1] // owner_tile(rows).samples(rows.shape[1]))


def _step_flops(rows: Tensor, steps: list[Tensor], heads: int, *banks: Tensor | None) -> int:
    """Products of whole tiles, padded columns and absent rows included."""
    tile, B = owner_tile(rows), rows.shape[1]
    tile_rows = steps[2].numel() * -(-B // tile.samples(B)) * tile.samples(B) * steps[0].shape[1]
    width = geometry(heads, rows.shape[2] // heads).width
    return sum(bank is not None for bank in banks) * 2 * tile_rows * width**2


def _outer_flops(rows: Tensor, runs: list[Tensor], heads: int) -> int:
    """One product of the rows of all pairs with [whole, width] columns; a segment's last tile is short."""
    tile, B = entry_tile(rows), rows.shape[1]
    samples = tile.samples(B)
    at_once = tile.rows // samples
    pairs = runs[0].numel() + runs[2].shape[1] * (at_once - 1)
    shape = geometry(heads, rows.shape[2] // heads)
    return 2 * pairs * -(-B // samples) * samples * shape.whole * shape.width


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    exists: Tensor | None,
    heads: int,
    scale: float,
    causal: bool,
    first: int,
    queries: int,
    keep_weights: bool,
    partial: bool,
) -> list[KernelCost]:
    """Two passes over the keys and the bias; values and weights belong to the second."""
    B, D = q.shape[1:]
    pairs, walks = _dense_pairs(q, heads, causal, first, queries), _walks(q, heads, causal, first, queries)
    bias_bytes = pairs * heads * 4 if bias is not None else 0
    weights = pairs * heads * q.element_size() if keep_weights else 0
    rows = queries * B * D
    written = rows * (4 if partial else q.element_size()) + queries * B * heads * 4
    memory = _bytes(k, v) + rows * q.element_size() + bias_bytes + weights + written
    cache = rows * q.element_size() + walks * 3 * q.element_size() + written
    cache += 2 * _sectors(bias_bytes, q, heads, 4) + _sectors(weights, q, heads, q.element_size())
    return [KernelCost(memory, cache, 6 * walks * dense_tile(q, D // heads).own)]


def _scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    narrow: Tensor | None,
    exists: Tensor | None,
    heads: int,
    scale: float,
    causal: bool,
    first: int,
    queries: int,
    finish: bool,
) -> list[KernelCost]:
    B, D = q.shape[1:]
    pairs, walks = _dense_pairs(q, heads, causal, first, queries), _walks(q, heads, causal, first, queries)
    size = q.element_size()
    halves, wides = 2 if finish else 1, (0 if finish else 1) + (narrow is not None)
    own = 2 * queries * B * D * size + 2 * queries * B * heads * 4
    memory = _bytes(k, v) + own + pairs * heads * (halves * size + wides * 4)
    cache = own + walks * 2 * size + _sectors(pairs * heads * size, q, heads, size) * halves
    cache += wides * _sectors(pairs * heads * 4, q, heads, 4)
    return [KernelCost(memory, cache, 4 * walks * dense_tile(q, D // heads).own)]


def _dense_gradients(
    weights: Tensor,
    grad_logits: Tensor,
    q: Tensor,
    k: Tensor,
    grad: Tensor,
    exists: Tensor | None,
    heads: int,
    scale: float,
    causal: bool,
    first: int,
    partial: bool,
) -> list[KernelCost]:
    N, B, D = q.shape
    queries, size, own = weights.shape[0], q.element_size(), dense_tile(q, D // heads).own
    pairs, walks = _dense_pairs(q, heads, causal, first, queries), _walks(q, heads, causal, first, queries)
    rows, pair_bytes, result = queries * B * D, pairs * heads * size, 4 if partial else size
    sectors = _sectors(pair_bytes, q, heads, size)
    of_queries = KernelCost(
        _bytes(k) + pair_bytes + rows * result, walks * size + sectors + rows * result, 2 * walks * own
    )
    written = 2 * N * B * D * result
    of_keys = KernelCost(
        2 * rows * size + 2 * pair_bytes + written, walks * 2 * size + 2 * sectors + written, 4 * walks * own
    )
    return [of_queries, of_keys]


def _dense_pairs(q: Tensor, heads: int, causal: bool, first: int, queries: int) -> int:
    """Pairs × samples that the dense kernels visit."""
    N, B = q.shape[:2]
    return B * (queries * first + queries * (queries + 1) // 2 if causal else queries * N)


def _walks(q: Tensor, heads: int, causal: bool, first: int, queries: int) -> int:
    """Numbers of one operand [·, B, D] that all programs read as they walk over the other tokens."""
    tile = dense_tile(q, q.shape[2] // heads)
    read = sum(
        min(q.shape[0], first + start + tile.own) if causal else q.shape[0]
        for start in range(0, queries, tile.own)
    )
    return read * q.shape[1] * q.shape[2]


def _sectors(pair_bytes: int, q: Tensor, heads: int, size: int) -> int:
    """Bytes of a pair tensor in whole sectors: a program reads a piece of a few samples of each pair."""
    piece = dense_tile(q, q.shape[2] // heads).samples * size
    return pair_bytes * max(SECTOR, piece) // piece


_operators = torch.ops.translution
COSTS |= {
    _operators.alpha_form.default: _form,
    _operators.alpha_token_sums.default: _token_sums,
    _operators.alpha_part_sums.default: _part_sums,
    _operators.alpha_logit_gradients.default: _logit_gradients,
    _operators.alpha_bank_sums.default: _bank_sums,
    _operators.alpha_segment_sums.default: _segment_sums,
    _operators.alpha_attend.default: _attend,
    _operators.alpha_scores.default: _scores,
    _operators.alpha_dense_gradients.default: _dense_gradients,
}
