"""The element-wise kernels of the grouped walk as torch operators, each with its cost.

`translution::grouped_…` operators write to their arguments and return nothing, so that their meta
implementation is empty. Triton is imported when one first runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from models.ops.kernel_cost import COSTS, KernelCost

_LIBRARY = torch.library.Library("translution", "FRAGMENT")
_ROWS, _SAMPLES, _COLUMNS, _BLOCK = 32, 16, 128, 2048  # of a program


def _operator(
    schema: str, cost: Callable[..., list[KernelCost]]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers the function as an operator, on CUDA and (for Triton's interpreter) on the CPU."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = schema.split("(")[0]
        _LIBRARY.define(schema)
        for key in ("CUDA", "CPU"):
            _LIBRARY.impl(name, function, key)
        _LIBRARY.impl(name, lambda *args: None, "Meta")
        operator = getattr(torch.ops.translution, name)
        COSTS[operator.default] = cost
        return operator

    return register


@lru_cache
def _kernels() -> ModuleType:
    from models.ops.grouped import kernels

    return kernels


def _merge_cost(q, k, v, lse, out, first, pair, key, start, samples, scale, by_pair) -> list[KernelCost]:
    pairs, heads, width = len(pair), out.shape[2], out.shape[3]
    each = pairs * samples * heads * width
    operands = [t for t, own in zip((q, k, v), by_pair, strict=True) if own]
    tokens = [t for t, own in zip((q, k, v), by_pair, strict=True) if not own]
    rows = out.shape[0] * samples * heads * width
    state = 2 * out.shape[0] * samples * heads * (width * out.element_size() + lse.element_size())
    memory = sum(each * t.element_size() for t in operands) + sum(rows * t.element_size() for t in tokens)
    cached = sum(each * t.element_size() for t in (q, k, v))
    return [KernelCost(memory + state, cached + state, 0)]


@_operator(
    "grouped_merge(Tensor q, Tensor k, Tensor v, Tensor(a!) lse, Tensor(b!) out, Tensor first, Tensor pair, "
    "Tensor key, int start, int samples, float scale, bool[] by_pair) -> ()",
    _merge_cost,
)
def grouped_merge(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    out: Tensor,
    first: Tensor,
    pair: Tensor,
    key: Tensor,
    start: int,
    samples: int,
    scale: float,
    by_pair: Sequence[bool],
) -> None:
    """Merges a chunk's pairs into the softmax lse[N, B, H], out[N, B, H, E] of `samples` samples.

    q, k, v are rows [pairs·samples, ·] of the chunk where `by_pair`, else their sources [N·B, D].
    """
    N, B, H, E = out.shape
    kernels = _kernels()
    block = min(_SAMPLES, _power_of_two(samples))
    kernels.merge[(N, H, -(-samples // block))](
        q, k, v, lse, out, first, pair, key, samples, B, start, q.stride(0), k.stride(0), v.stride(0), scale,
        H=H, E=E, EP=_power_of_two(E), BS=block,
        Q_PAIR=by_pair[0], K_PAIR=by_pair[1], V_PAIR=by_pair[2],
    )  # fmt: skip


def _gradients_cost(
    q, k, v, dq, dk, dv, lse, delta, dout, query, key, start, samples, scale, by_pair
) -> list[KernelCost]:
    N, heads, width = len(dout), dout.shape[2], dout.shape[3]
    each, rows = len(query) * samples * heads * width, N * samples * heads * width
    written = 3 * each * dq.element_size()
    memory = sum((each if own else rows) * q.element_size() for own in by_pair)
    memory += rows * dout.element_size() + 2 * N * samples * heads * lse.element_size()
    cached = 3 * each * q.element_size() + each * dout.element_size() + 2 * each // width * lse.element_size()
    return [KernelCost(memory + written, cached + written, 0)]


@_operator(
    "grouped_gradients(Tensor q, Tensor k, Tensor v, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, "
    "Tensor lse, Tensor delta, Tensor dout, Tensor query, Tensor key, int start, int samples, float scale, "
    "bool[] by_pair) -> ()",
    _gradients_cost,
)
def grouped_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    lse: Tensor,
    delta: Tensor,
    dout: Tensor,
    query: Tensor,
    key: Tensor,
    start: int,
    samples: int,
    scale: float,
    by_pair: Sequence[bool],
) -> None:
    """∂q, ∂k, ∂v [pairs·samples, ·] of a chunk from the final lse, delta [N, B, H] and ∂out [N, B, H, E]."""
    _, B, H, E = dout.shape
    rows = len(query) * samples
    _kernels().gradients[(-(-rows // _ROWS), H)](
        q, k, v, dq, dk, dv, lse, delta, dout, query, key, rows, samples, B, start,
        q.stride(0), k.stride(0), v.stride(0), dq.stride(0), dk.stride(0), dv.stride(0), scale,
        H=H, E=E, EP=_power_of_two(E), BR=_ROWS,
        Q_PAIR=by_pair[0], K_PAIR=by_pair[1], V_PAIR=by_pair[2],
    )  # fmt: skip


def _sum_rows_cost(rows, total, first, pair, start, samples) -> list[KernelCost]:
    read = len(pair) * samples * total.shape[2] * rows.element_size()
    moved = read + 2 * total.shape[0] * samples * total.shape[2] * total.element_size()
    return [KernelCost(moved, moved, 0)]


@_operator(
    "grouped_sum_rows(Tensor rows, Tensor(a!) total, Tensor first, Tensor pair, int start, "
    "int samples) -> ()",
    _sum_rows_cost,
)
def grouped_sum_rows(
    rows: Tensor, total: Tensor, first: Tensor, pair: Tensor, start: int, samples: int
) -> None:
    """Adds the rows [pairs·samples, C] of each token's pairs to total [N, B, C]."""
    N, B, width = total.shape
    block, columns = min(_SAMPLES, _power_of_two(samples)), min(_COLUMNS, _power_of_two(width))
    _kernels().sum_rows[(N, -(-samples // block), -(-width // columns))](
        rows, total, first, pair, samples, B, start, rows.stride(0), width, BS=block, BC=columns
    )


def _gather_cost(banks, entries, packed) -> list[KernelCost]:
    moved = packed.numel() * (packed.element_size() + banks[0].element_size())
    return [KernelCost(moved, moved, 0)]


@_operator("grouped_gather(Tensor[] banks, Tensor entries, Tensor(a!) packed) -> ()", _gather_cost)
def grouped_gather(banks: Sequence[Tensor], entries: Tensor, packed: Tensor) -> None:
    """Copies entries of up to three banks [K, C, D] side by side into packed [G, C, banks·D]."""
    _, C, D = banks[0].shape
    first, second, third = _three(banks)
    _kernels().gather[(-(-C * D // _BLOCK), len(entries), len(banks))](
        first, second, third, packed, entries, C * D, D, packed.shape[2], BLOCK=_BLOCK
    )


def _scatter_cost(products, entries, again, totals) -> list[KernelCost]:
    numbers = sum(product.numel() for product in products)
    moved = numbers * (products[0].element_size() + totals[0].element_size())
    return [KernelCost(moved, moved, 0)]


@_operator(
    "grouped_scatter(Tensor[] products, Tensor entries, Tensor again, Tensor(a!)[] totals) -> ()",
    _scatter_cost,
)
def grouped_scatter(
    products: Sequence[Tensor], entries: Tensor, again: Tensor, totals: Sequence[Tensor]
) -> None:
    """Writes products [G, C, D] to these entries of totals [K, C, D], or adds them where `again`."""
    _, C, D = totals[0].shape
    rows = [product.stride(1) for product in _three(products)]
    _kernels().scatter[(-(-C * D // _BLOCK), len(entries), len(totals))](
        *_three(products), *_three(totals), entries, again, C * D, D, *rows, BLOCK=_BLOCK
    )


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Kernels take three; those that are missing are not read."""
    return [*tensors, *[tensors[0]] * (3 - len(tensors))]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
