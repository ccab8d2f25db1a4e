"""The dense part as operators of torch.library: attention with a bias per pair and head, and its gradients.

Rows are [N, B, H·E], pair tensors [queries, N, H, B] for the queries from `first` on. Pairs with a key later
than its query (`causal`), and those that are 0 in exists [queries, N], are not there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from models.ops.fused.alpha.tiles import DenseTile, dense_tile


@torch.library.custom_op("translution::alpha_attend", mutates_args=())
def alpha_attend(
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
) -> list[Tensor]:
    """lse [queries, B, H] in float32 and out [queries, B, H·E], then the softmax weights, if to be kept.

    out is float32 where it is `partial`, to be merged with that of other pairs; else in the dtype of q.
    """
    results = _attend_results(q, heads, queries, keep_weights, partial)
    lse, out, weights = results
    N, B, D = q.shape
    tile = dense_tile(q, D // heads)
    _kernel("attend_kernel")[_grid(tile, B, heads, queries)](
        q, k, v, _or(bias, q), _or(exists, q), lse, out, weights,
        B, N, first, queries, *strides(q, k, v), scale,
        causal, exists is not None, bias is not None, keep_weights, *_shape(tile, D // heads),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return results


@alpha_attend.register_fake
def _(q, k, v, bias, exists, heads, scale, causal, first, queries, keep_weights, partial):
    return _attend_results(q, heads, queries, keep_weights, partial)


@torch.library.custom_op("translution::alpha_scores", mutates_args=())
def alpha_scores(
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
) -> list[Tensor]:
    """scale · ⟨q, k⟩ − lse in float32, and ⟨∂out, v⟩ + narrow − delta of each pair; to `finish`, P and dS."""
    results = _score_results(q, heads, queries, finish)
    logits, grad_weights = results
    N, B, D = q.shape
    tile = dense_tile(q, D // heads)
    _kernel("scores_kernel")[_grid(tile, B, heads, queries)](
        q, k, v, grad, lse, delta, _or(narrow, q), _or(exists, q), logits, grad_weights,
        B, N, first, queries, *strides(q, k, v, grad), scale,
        causal, exists is not None, narrow is not None, finish, *_shape(tile, D // heads),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return results


@alpha_scores.register_fake
def _(q, k, v, grad, lse, delta, narrow, exists, heads, scale, causal, first, queries, finish):
    return _score_results(q, heads, queries, finish)


@torch.library.custom_op("translution::alpha_dense_gradients", mutates_args=())
def alpha_dense_gradients(
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
) -> list[Tensor]:
    """∂q [queries, B, H·E], ∂k and ∂v [N, B, H·E] from P and dS; float32 where `partial`, else as q."""
    results = _dense_results(weights, q, partial)
    grad_q, grad_k, grad_v = results
    N, B, D = q.shape
    queries, tile = weights.shape[0], dense_tile(q, D // heads)
    options = (causal, exists is not None, *_shape(tile, D // heads))
    _kernel("query_gradients_kernel")[_grid(tile, B, heads, queries)](
        grad_logits, k, _or(exists, q), grad_q, B, N, first, queries, *strides(k), scale,
        *options, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _kernel("key_gradients_kernel")[_grid(tile, B, heads, N)](
        weights, grad_logits, q, grad, _or(exists, q), grad_k, grad_v,
        B, N, first, queries, *strides(q, grad), scale,
        *options, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return results


@alpha_dense_gradients.register_fake
def _(weights, grad_logits, q, k, grad, exists, heads, scale, causal, first, partial):
    return _dense_results(weights, q, partial)


def _attend_results(q: Tensor, heads: int, queries: int, keep_weights: bool, partial: bool) -> list[Tensor]:
    N, B, D = q.shape
    lse = q.new_empty((queries, B, heads), dtype=torch.float32)
    out = q.new_empty((queries, B, D), dtype=_result_type(q, partial))
    return [lse, out, q.new_empty((queries if keep_weights else 0, N, heads, B))]


def _score_results(q: Tensor, heads: int, queries: int, finish: bool) -> list[Tensor]:
    shape = (queries, q.shape[0], heads, q.shape[1])
    return [q.new_empty(shape, dtype=q.dtype if finish else torch.float32), q.new_empty(shape)]


def _dense_results(weights: Tensor, q: Tensor, partial: bool) -> list[Tensor]:
    dtype = _result_type(q, partial)
    grad_q = q.new_empty((weights.shape[0], *q.shape[1:]), dtype=dtype)
    return [grad_q, *(q.new_empty(q.shape, dtype=dtype) for _ in "kv")]


def _result_type(q: Tensor, partial: bool) -> torch.dtype:
    return torch.float32 if partial else q.dtype


def _grid(tile: DenseTile, batch: int, heads: int, tokens: int) -> tuple[int, int, int]:
    """Samples and heads go fastest, so that programs side by side read neighbouring pieces of a pair."""
    return -(-batch // tile.samples), heads, -(-tokens // tile.own)


def _shape(tile: DenseTile, head_width: int) -> tuple[int, int, int, int, int, bool]:
    padded = max(16, 1 << (head_width - 1).bit_length())
    upcast = import_module("models.ops.fused.alpha.kernels.tokens").UPCAST
    return head_width, padded, tile.samples, tile.own, tile.others, upcast


def strides(*rows: Tensor) -> tuple[int, ...]:
    """From a token to the next of each of some rows [N, B, H·E], then from a sample to the next."""
    return *(t.stride(0) for t in rows), *(t.stride(1) for t in rows)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A tensor for a kernel; one that is absent is never read."""
    return other if tensor is None else tensor


def _kernel(name: str) -> Any:
    """A Triton kernel; the module that imports triton is imported when one is launched."""
    return getattr(import_module("models.ops.fused.alpha.kernels.dense"), name)
