"""Moves a net's state from one mesh to another, one parameter at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parallel.mesh import Mesh
from parallel.sharding.layout import Shard, shards


def moved_state(parts: list[dict[str, Any]], net: nn.Module, before: Mesh, after: Mesh) -> dict[str, Any]:
    """The part of a net's state that one place of a mesh holds, from those of all ranks of the
    model-parallel group of another mesh, in order. A mesh of one process holds all.

    `net` is whole and may be on the meta device. Parameters are joined one at a time.
    """
    ranks = [shards(net, Mesh(1, before.offset, before.tensor, rank)) for rank in range(before.model)]
    own = shards(net, after)
    parameters = {}
    for name, shard in own.items():
        held, tensors = [rank[name] for rank in ranks], [part["parameters"][name] for part in parts]
        parameters[name] = {
            key: _cut(join([each[key] for each in tensors], held), shard) for key in tensors[0]
        }
    return parts[0] | {"parameters": parameters}


def join(parts: list[Tensor], held: list[Shard]) -> Tensor:
    """A whole parameter from the parts that the ranks of a model-parallel group hold, in order."""
    if not held[0].sharded():
        return parts[0]
    whole = parts[0].new_zeros(held[0].full)
    for part, shard in zip(parts, held, strict=True):
        place = whole if shard.dim is None else _slice(whole, shard)
        part = part if shard.dim is None else part.narrow(shard.dim, 0, place.shape[shard.dim])
        if shard.entries is None:
            place.copy_(part)
        else:
            place[torch.tensor(shard.entries, device=place.device)] = part
    return whole


def _cut(whole: Tensor, shard: Shard) -> Tensor:
    if shard.entries is not None:
        whole = whole[torch.tensor(shard.entries, device=whole.device)]
    taken = shard.take(whole)
    return taken if taken.numel() == whole.numel() else taken.clone()  # a view would keep the whole


def _slice(whole: Tensor, shard: Shard) -> Tensor:
    assert shard.dim is not None
    return whole.narrow(shard.dim, *shard.inside)
