"""Offset parallelism: each rank streams over its own residue classes, and the partial softmaxes are
merged as in split-KV FlashAttention.

Only activations are sent, whatever the size of the bank: forward N·B·H maxima and N·B·(D + H)
sums, backward the gradients of the operator's sources.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.mixers.interface import Mixer
from parallel.mesh import Mesh
from parallel.sharding.layout import offset_shares


class OffsetCombine:
    """Merges the streamed operator's partial softmaxes across the ranks of an offset group.

    whole_banks   every rank holds the same banks, so their gradients are summed too
    """

    def __init__(self, group: dist.ProcessGroup, whole_banks: bool) -> None:
        self._group, self._whole_banks = group, whole_banks

    def merge(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        highest = lse.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, self._group)
        weight = (lse - highest).exp_().unsqueeze(-1)  # 0 for a query that met no pair here
        parts = torch.cat([*(out * weight for out in outs), weight], -1)
        dist.all_reduce(parts, group=self._group)
        *outs, total = parts.split([*(out.shape[-1] for out in outs), 1], -1)
        return highest + total.squeeze(-1).log(), [out / total for out in outs]

    def sum_gradients(self, grad_sources: list[Tensor], grad_banks: list[Tensor]) -> list[Tensor]:
        summed = _all_reduce_together(grad_sources, self._group)
        if self._whole_banks:
            for grad in grad_banks:
                dist.all_reduce(grad, group=self._group)
        return summed


def shard_offsets(mixer: Mixer, mesh: Mesh) -> None:
    """Leaves a mixer this rank's share of the pairs, and merges its softmax over the offset group."""
    group = mesh.group("offset")
    assert group is not None
    assert mixer.schedule is not None
    share = offset_shares(mixer, mesh.offset)[mesh.offset_rank]
    mixer.schedule = share.schedule(mixer.schedule)
    mixer.combine = OffsetCombine(group, whole_banks=share.entries is None)


def _all_reduce_together(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Sums tensors over the group in one collective."""
    if len(tensors) == 1:
        dist.all_reduce(tensors[0], group=group)
        return tensors
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
