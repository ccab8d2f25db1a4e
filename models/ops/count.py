"""Counts the kernels that a computation launches and what each costs, on the meta device.

Counted, not measured: every operator that touches memory is one launch whose bytes follow from the shapes
of its arguments; custom operators say themselves what their launches cost (kernel_cost.py). Nothing is
kept in the second-level cache from one launch to the next, which is pessimistic for small tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.ops.cards import Card
from models.ops.kernel_cost import COSTS, KernelCost

# views, allocations, and questions about a tensor
_FREE = {
    *("view", "_unsafe_view", "as_strided", "slice", "select", "unsqueeze", "squeeze", "t", "transpose"),
    *("permute", "unbind", "split", "split_with_sizes", "narrow", "expand", "detach", "alias", "reshape"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "is_pinned"),
}
_READS_WHAT_IT_WRITES = {"index", "index_select", "gather", "embedding"}
_ATTENTION = {  # products of each pair; is_causal among the arguments
    "_scaled_dot_product_flash_attention_for_cpu": (2, 4),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (5, 7),
}
TILE = 256  # rows and columns of a product for which a cluster of programs reads its operands once
GROUP_ROWS, GROUP_INNER = 128, 64  # a grouped product pads each group to whole tiles


class LaunchCounter(TorchDispatchMode):
    """The launches of everything computed while it is on; `limit` seconds on `card` end it with TooSlow."""

    def __init__(self, card: Card, limit: float = float("inf")) -> None:
        super().__init__()
        self.card, self.limit = card, limit
        self.kernels = self.memory_bytes = self.flops = 0
        self.seconds = 0.0
        self.by_operator: Counter[str] = Counter()  # launches

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch's compiler is loaded, which takes a second

    def add(self, name: str, launches: Iterable[KernelCost]) -> None:
        for launch in launches:
            self.kernels += 1
            self.by_operator[name] += 1
            self.memory_bytes += launch.memory_bytes
            self.flops += launch.flops
            self.seconds += self.card.seconds(launch)
        if self.seconds > self.limit:
            raise TooSlow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.addmm.default and args[0].is_meta:
            # torch's own loads its compiler, which takes half a second
            out = args[1].new_empty((args[1].shape[0], args[2].shape[1]))
        else:
            out = func(*args, **kwargs)
        if func.namespace == "translution" or _on_card(args, args if out is None else out):
            self.add(func.overloadpacket.__name__, launches(func, args, kwargs, out))
        return out


def launches(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> list[KernelCost]:
    """The kernels that an operator launches, from its arguments and its result; none for a view."""
    if func in COSTS:
        return COSTS[func](*args, **kwargs)
    if func.namespace == "translution":
        raise NotImplementedError(f"{func} says nothing of its cost: it is missing in COSTS")
    name = func.overloadpacket.__name__
    if name in _FREE or not _tensors((args, kwargs, out)):
        return []
    return [_aten_cost(name, args, kwargs, out)]


def _on_card(args: Any, out: Any) -> bool:
    """False for tables that the host makes, and for their way to the card: that happens once."""
    return any(leaf.is_meta for leaf in _tensors(out)) and not any(
        leaf.device.type == "cpu" and leaf.dim() for leaf in _tensors(args)
    )


class TooSlow(Exception):
    """A count passed its limit."""


def _aten_cost(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> KernelCost:
    inputs = _tensors((args, [value for key, value in kwargs.items() if key != "out"]))
    outputs = _tensors(out)
    if name in _ATTENTION:
        return _attention(name, args, inputs, outputs)
    product = _product(name, inputs, outputs)
    if product is not None:
        return product
    if name in _READS_WHAT_IT_WRITES:
        moved = 2 * sum(map(_bytes, outputs))
    elif name in ("index_add_", "index_add"):
        moved = 3 * _bytes(inputs[-1])
    elif name in ("index_copy_", "index_put_"):
        moved = 2 * _bytes(inputs[-1])
    elif name == "copy_":
        moved = _bytes(inputs[1]) + _bytes(inputs[0])
    elif name == "_foreach_copy_":
        moved = sum(map(_bytes, inputs))
    elif name in ("zero_", "fill_"):
        moved = _bytes(inputs[0])
    else:
        moved = sum(map(_bytes, inputs + outputs))
    return KernelCost(moved, moved, 0)


def _product(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> KernelCost | None:
    """The cost of a matrix product; None for anything else."""
    if name in ("mm", "addmm", "addmm_", "bmm", "baddbmm_", "baddbmm"):
        a, b = inputs[-2:]
        batch = a.shape[0] if a.dim() == 3 else 1
        return _matrix_product(inputs, outputs, batch, a.shape[-2], a.shape[-1], b.shape[-1])
    if name in ("_grouped_mm", "grouped_mm"):
        return _grouped_product(inputs, outputs)
    return None


def _attention(name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> KernelCost:
    """A fused kernel, whatever device its name is of; keys and values are read by every 128 queries."""
    products, place = _ATTENTION[name]
    q, k = inputs[1:3] if name.endswith("backward") else inputs[:2]  # [B, H, N, E]
    pairs = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if len(args) > place and args[place]:
        pairs //= 2
    moved = sum(map(_bytes, inputs + outputs))
    again = -(-q.shape[2] // 128) - 1
    return KernelCost(moved, moved + 2 * again * _bytes(k), products * 2 * pairs * q.shape[3])


def _matrix_product(
    inputs: list[Tensor], outputs: list[Tensor], batch: int, M: int, K: int, N: int
) -> KernelCost:
    moved = sum(map(_bytes, inputs + outputs))
    size = inputs[-1].element_size()
    operands = batch * K * (M * -(-N // TILE) + N * -(-M // TILE)) * size
    return KernelCost(moved, operands + sum(map(_bytes, outputs)), 2 * batch * M * K * N)


def _grouped_product(inputs: list[Tensor], outputs: list[Tensor]) -> KernelCost:
    """Rows [n, K] by a matrix per group, or rows [M, n] by rows [n, N] into a matrix per group.

    The ends of the groups are values, not shapes: each group pads half a tile on average.
    """
    a, b, ends = inputs[0], inputs[1], inputs[-1]
    groups, size = len(ends), a.element_size()
    moved = sum(map(_bytes, inputs + outputs))
    written = sum(map(_bytes, outputs))
    if b.dim() == 3:
        (n, K), N = a.shape, b.shape[-1]
        rows = n + groups * GROUP_ROWS // 2
        operands = rows * K * -(-N // TILE) + K * N * max(groups, n // TILE)
        return KernelCost(moved, operands * size + written, 2 * rows * K * N)
    (M, n), N = a.shape, b.shape[-1]
    inner = n + groups * GROUP_INNER // 2
    operands = inner * (M * -(-N // TILE) + N * -(-M // TILE))
    return KernelCost(moved, operands * size + written, 2 * inner * M * N)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes that reading the tensor moves: broadcast dimensions once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()
