"""Offset parallelism: each rank streams over its own residue classes, and the parts of the softmax
combine like split-KV FlashAttention (DESIGN section 4).

What is sent are activations, whatever the size of the bank: forward N·B·H maxima and N·B·(D + H)
sums, backward the gradients of the operator's sources.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.mixers.translution import Translution
from models.ops.schedule import Plan
from parallel.mesh import Mesh
from parallel.sharding.layout import offset_share


class OffsetCombine:
    """The combine step of the streamed operator over the ranks of an offset group.

    `whole_banks`: every rank holds the same banks, so that their gradients are summed as well.
    """

    def __init__(self, group: dist.ProcessGroup, whole_banks: bool) -> None:
        self._group, self._whole_banks = group, whole_banks

    def softmax(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        highest = lse.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, self._group)
        weight = (lse - highest).exp_().unsqueeze(-1)  # 0 for a query that met no pair here
        parts = torch.cat([*(out * weight for out in outs), weight], -1)
        dist.all_reduce(parts, group=self._group)
        *outs, total = parts.split([*(out.shape[-1] for out in outs), 1], -1)
        return highest + total.squeeze(-1).log(), [out / total for out in outs]

    def gradient(self, grad_sources: list[Tensor], grad_banks: list[Tensor]) -> list[Tensor]:
        summed = _all_reduce_together(grad_sources, self._group)
        if self._whole_banks:
            for grad in grad_banks:
                dist.all_reduce(grad, group=self._group)
        return summed


def shard_offsets(layer: Translution, mesh: Mesh) -> None:
    """Gives a Translution its rank's classes and the combining reduction in place of none."""
    group = mesh.group("offset")
    assert group is not None
    share = offset_share(layer.grid, mesh.offset)[mesh.offset_rank]
    local = None if share.entries is None else {entry: i for i, entry in enumerate(share.entries)}
    layer.plan = Plan(layer.grid, share.classes, share.special_blocks, local)
    layer.combine = OffsetCombine(group, whole_banks=share.entries is None)


def _all_reduce_together(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Sums tensors over the group in one collective."""
    if len(tensors) == 1:
        dist.all_reduce(tensors[0], group=group)
        return tensors
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
