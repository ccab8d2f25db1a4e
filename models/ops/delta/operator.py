"""Σ ⟨∂out, out⟩ per token and head, which backward begins with, in one launch on a card."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from models.ops.device import device_type
from models.ops.kernel_cost import COSTS, KernelCost

ROWS = 16  # (token, sample, head) that a program sums; few, so that wide heads fit


def delta_of(grads: Sequence[Tensor], outs: Sequence[Tensor]) -> Tensor:
    """Σ ⟨∂out, out⟩ [N, B, H] over value segments [N, B, H, E], in float32, or float64 for float64 outs."""
    kernel = device_type(outs[0].device) == "cuda" and outs[0].dtype != torch.float64 and len(outs) < 3
    if kernel and find_spec("triton") is not None:
        return row_dots(list(grads), list(outs))
    statistics = torch.promote_types(outs[0].dtype, torch.float32)
    first, *others = ((g.to(statistics) * out).sum(-1) for g, out in zip(grads, outs, strict=True))
    for other in others:
        first.add_(other)
    return first


@torch.library.custom_op("translution::row_dots", mutates_args=())
def row_dots(grads: list[Tensor], outs: list[Tensor]) -> Tensor:
    """Σ ⟨∂out, out⟩ [N, B, H] of one or two value segments [N, B, H, E], in float32."""
    result = outs[0].new_empty(outs[0].shape[:3], dtype=torch.float32)
    rows = result.numel()
    grads, outs = [t.contiguous() for t in grads], [t.contiguous() for t in outs]
    widths = [out.shape[3] for out in outs]
    padded = [1 << (width - 1).bit_length() for width in widths]
    two = len(outs) == 2
    import_module("models.ops.delta.kernel").row_dots_kernel[(-(-rows // ROWS),)](
        grads[0], outs[0], grads[-1], outs[-1], result, rows,
        widths[0], padded[0], widths[-1], padded[-1], two, ROWS, num_warps=4,
    )  # fmt: skip
    return result


@row_dots.register_fake
def _(grads, outs):
    return outs[0].new_empty(outs[0].shape[:3], dtype=torch.float32)


def _cost(grads: list[Tensor], outs: list[Tensor]) -> list[KernelCost]:
    read = sum(t.numel() * t.element_size() for t in (*grads, *outs))
    moved = read + outs[0][..., 0].numel() * 4
    return [KernelCost(moved, moved, 0)]


COSTS[torch.ops.translution.row_dots.default] = _cost
