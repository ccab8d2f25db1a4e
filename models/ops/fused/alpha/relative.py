"""The relative part as operators of torch.library: a bilinear form per pair and head, and its gradients.

left and right are narrow rows [N, B, H·R], pair tensors [queries, N, H, B] for the queries from `first` on;
pairs that are not there hold nothing. Tables are `Steps` and `Runs` of tables.py, one tensor after the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from models.ops.fused.alpha.dense import strides
from models.ops.fused.alpha.tiles import entry_tile, geometry, owner_tile, sums_at_once


@torch.library.custom_op("translution::alpha_form", mutates_args=())
def alpha_form(
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
) -> Tensor:
    """scale · ⟨left_i W^left_δ, right_j W^right_δ⟩ per head → [queries, N, H, B] float32."""
    out = _pair_tensor(right, heads, queries)
    N, B, D = right.shape
    tile, shape = owner_tile(left), geometry(heads, D // heads)
    owners, bounds, entries, partners = steps
    samples, parts = tile.samples(B), bounds.shape[1] - 1
    grid = (len(owners) * parts, -(-B // samples))
    _kernel("tokens", "form_kernel")[grid](
        left, right, *_banks(left, left_bank, right_bank), owners, bounds, entries, partners, out,
        B, N, first, *strides(left, right), scale,
        left_bank is not None, right_bank is not None, parts, tuple(shape),
        owners.shape[1] * samples, samples, _upcast(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@alpha_form.register_fake
def _(left, right, left_bank, right_bank, steps, heads, scale, first, queries, pairs):
    return _pair_tensor(right, heads, queries)


@torch.library.custom_op("translution::alpha_token_sums", mutates_args=())
def alpha_token_sums(
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
) -> Tensor:
    """scale · Σ over a token's pairs of (weight ⊗ (rows · W^row_δ)) · W^out_δᵀ, in float32.

    Gives [parts, queries or N, B, H·R], to be summed over the parts of each token's pairs (`bounds`): with
    `of_queries` a query sums over the rows of its keys, else a key over those of its queries.
    """
    N, B, D = rows.shape
    tokens = weight.shape[0] if of_queries else N
    tile, shape = owner_tile(rows), geometry(heads, D // heads)
    owners, bounds, entries, partners = steps
    samples, parts = tile.samples(B), bounds.shape[1] - 1
    out = rows.new_empty((parts, tokens, B, D), dtype=torch.float32)
    grid = (len(owners) * parts, -(-B // samples))
    _kernel("tokens", "token_sums_kernel")[grid](
        weight, rows, *_banks(rows, row_bank, out_bank), owners, bounds, entries, partners, out,
        B, weight.shape[1], first, first if of_queries else 0, *strides(rows), out.stride(0), scale,
        of_queries, row_bank is not None, out_bank is not None, parts, tuple(shape),
        owners.shape[1] * samples, samples, _upcast(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@alpha_token_sums.register_fake
def _(weight, rows, row_bank, out_bank, steps, heads, scale, first, of_queries, pairs):
    tokens, parts = weight.shape[0] if of_queries else rows.shape[0], steps[1].shape[1] - 1
    return rows.new_empty((parts, tokens, *rows.shape[1:]), dtype=torch.float32)


@torch.library.custom_op("translution::alpha_part_sums", mutates_args=())
def alpha_part_sums(parts: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Σ over the first dimension of each of up to three tensors."""
    results = [part.new_empty(part.shape[1:], dtype=dtype) for part in parts]
    absent, block = 3 - len(parts), 1024
    sizes = [out.numel() for out in results] + [0] * absent
    counts = [part.shape[0] for part in parts] + [0] * absent
    _kernel("tokens", "part_sums_kernel")[(-(-max(sizes) // block), len(parts))](
        *parts, *parts[:1] * absent, *results, *results[:1] * absent, *sizes, *counts, block, _upcast(),
        num_warps=4,
    )  # fmt: skip
    return results


@alpha_part_sums.register_fake
def _(parts, dtype):
    return [part.new_empty(part.shape[1:], dtype=dtype) for part in parts]


@torch.library.custom_op("translution::alpha_logit_gradients", mutates_args=())
def alpha_logit_gradients(
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
) -> list[Tensor]:
    """P, dS [queries, N, H, B], then the sums of ∂W^query and ∂W^key over each segment [L, H·R, H·R].

    logits is log P without the form scale · ⟨query W, key W⟩, grad_weights is dP − delta; dS leaves the scale
    out. A projection without a bank has no sums.
    """
    results = _logit_results(query, query_bank, key_bank, grad_weights, runs)
    weights, grad_logits, grad_query_bank, grad_key_bank = results
    N, B, D = key.shape
    tile, shape = entry_tile(query), geometry(heads, D // heads)
    queries, keys, segments = runs
    samples = tile.samples(B)
    used = query_bank is not None, key_bank is not None
    for sums in sums_at_once(tile, *used):
        _kernel("entries", "logit_gradients_kernel")[(segments.shape[1],)](
            query, key, *_banks(query, query_bank, key_bank), logits, grad_weights, queries, keys, segments,
            weights, grad_logits, grad_query_bank, grad_key_bank,
            B, N, first, segments.shape[1], *strides(query, key), scale,
            *used, *sums, tuple(shape), shape.whole, tile.rows, samples,
            _upcast(), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return results


@alpha_logit_gradients.register_fake
def _(query, key, query_bank, key_bank, logits, grad_weights, runs, heads, scale, first):
    return _logit_results(query, query_bank, key_bank, grad_weights, runs)


@torch.library.custom_op("translution::alpha_bank_sums", mutates_args=())
def alpha_bank_sums(
    weight: Tensor, query: Tensor, key: Tensor, runs: list[Tensor], heads: int, first: int
) -> Tensor:
    """Σ key_jᵀ (weight_ij ⊗ query_i) over each segment of pairs → [L, H·R, H·R] float32."""
    N, B, D = key.shape
    tile, shape = entry_tile(query), geometry(heads, D // heads)
    queries, keys, segments = runs
    out = query.new_empty((segments.shape[1], D, D), dtype=torch.float32)
    _kernel("entries", "bank_sums_kernel")[(segments.shape[1],)](
        weight, query, key, queries, keys, segments, out,
        B, N, first, segments.shape[1], *strides(query, key),
        tuple(shape), shape.whole, tile.rows, tile.samples(B),
        _upcast(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@alpha_bank_sums.register_fake
def _(weight, query, key, runs, heads, first):
    D = query.shape[2]
    return query.new_empty((runs[2].shape[1], D, D), dtype=torch.float32)


@torch.library.custom_op("translution::alpha_segment_sums", mutates_args=())
def alpha_segment_sums(parts: Tensor, bounds: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ over each entry's segments of parts [L, H·R, H·R] → [K, H·R, H·R]; 0 for an entry without any."""
    entries, size, block = len(bounds) - 1, parts[0].numel() if len(parts) else parts.shape[1] ** 2, 1024
    out = parts.new_empty((entries, *parts.shape[1:]), dtype=dtype)
    _kernel("entries", "segment_sums_kernel")[(entries, -(-size // block))](
        parts, bounds, out, size, block, num_warps=4
    )
    return out


@alpha_segment_sums.register_fake
def _(parts, bounds, dtype):
    return parts.new_empty((bounds.shape[0] - 1, *parts.shape[1:]), dtype=dtype)


def _pair_tensor(rows: Tensor, heads: int, queries: int) -> Tensor:
    return rows.new_empty((queries, rows.shape[0], heads, rows.shape[1]), dtype=torch.float32)


def _logit_results(
    query: Tensor,
    query_bank: Tensor | None,
    key_bank: Tensor | None,
    grad_weights: Tensor,
    runs: list[Tensor],
) -> list[Tensor]:
    D, segments = query.shape[2], runs[2].shape[1]
    sums = [
        query.new_empty((0 if bank is None else segments, D, D), dtype=torch.float32)
        for bank in (query_bank, key_bank)
    ]
    return [torch.empty_like(grad_weights), torch.empty_like(grad_weights), *sums]


def _banks(rows: Tensor, *banks: Tensor | None) -> list[Tensor]:
    """Banks for a kernel; one that is absent is never read."""
    return [rows if bank is None else bank for bank in banks]


def _kernel(module: str, name: str) -> Any:
    """A Triton kernel; the modules that import triton are imported when one is launched."""
    return getattr(import_module(f"models.ops.fused.alpha.kernels.{module}"), name)


def _upcast() -> bool:
    return import_module("models.ops.fused.alpha.kernels.tokens").UPCAST
