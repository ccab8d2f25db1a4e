"""States of the ranks of one mesh joined to that of a whole net, and cut again for another mesh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parallel.mesh import Mesh
from parallel.shard import Shard, shards


def whole_state(parts: list[dict[str, Any]], net: nn.Module, mesh: Mesh) -> dict[str, Any]:
    """One state of the whole net from those of all ranks of its model-parallel group, in order.

    `net` is whole and may be on the meta device; `mesh` is the one the parts are of.
    """
    held = [shards(net, Mesh(1, mesh.offset, mesh.tensor, rank)) for rank in range(mesh.model)]
    parameters = {}
    for name, shard in held[0].items():
        tensors = [part["parameters"][name] for part in parts]
        parameters[name] = {
            key: _join([each[key] for each in tensors], [rank[name] for rank in held])
            if shard.sharded()
            else tensors[0][key]
            for key in tensors[0]
        }
    return parts[0] | {"parameters": parameters}


def cut_state(state: dict[str, Any], net: nn.Module, mesh: Mesh) -> dict[str, Any]:
    """The part of a whole net's state that one place of a mesh holds."""
    held = shards(net, mesh)
    parameters = {
        name: {key: _cut(tensor, held[name]) for key, tensor in tensors.items()}
        for name, tensors in state["parameters"].items()
    }
    return state | {"parameters": parameters}


def _join(parts: list[Tensor], held: list[Shard]) -> Tensor:
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
    return shard.take(whole)


def _slice(whole: Tensor, shard: Shard) -> Tensor:
    assert shard.dim is not None
    return whole.narrow(shard.dim, *shard.inside)
