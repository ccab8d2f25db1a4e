"""States of nets whose every number differs, and checkpoints of them as the ranks of any mesh write them."""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from parallel.checkpoint.contents import Index
from parallel.checkpoint.save import written_by
from parallel.checkpoint.storage import publish, unfinished, write_rank
from parallel.engine.interface import MOMENTS, WEIGHT, HeldState
from parallel.mesh import Mesh
from parallel.sharding.layout import Shard, shards

Whole = dict[str, dict[str, Tensor]]


def numbered(net: nn.Module) -> Whole:
    """Weights and moments of a net by kind and name; no number occurs twice."""
    count, state = 1, {}
    for kind in (WEIGHT, *MOMENTS):
        state[kind] = {}
        for name, parameter in net.named_parameters():
            size = parameter.numel()
            numbers = torch.arange(count, count + size, dtype=torch.float32)
            state[kind][name] = numbers.view(parameter.shape)
            count += size
    assert count < 2**24  # so that all are exact
    return state


def part(whole: Tensor, shard: Shard) -> Tensor:
    """The part of a parameter that a place of a mesh holds."""
    if shard.entries is not None:
        whole = whole[list(shard.entries)]
    return shard.take(whole).contiguous()


def ranks(data: int, offset: int, tensor: int) -> list[Mesh]:
    return [Mesh(data, offset, tensor, rank) for rank in range(data * offset * tensor)]


def runs(held: dict[str, Shard], mesh: Mesh, zero: int) -> dict[str, tuple[int, int]]:
    """What ZeRO gives a rank: of each parameter (3), of the flattened net (1 and 2), or all (0)."""
    if zero == 0:
        return {name: (0, shard.numel) for name, shard in held.items()}
    found, at = {}, 0
    total = math.ceil(sum(shard.numel for shard in held.values()) / mesh.data)
    for name, shard in held.items():
        size = math.ceil(shard.numel / mesh.data) if zero == 3 else total
        first = 0 if zero == 3 else at
        ends = (mesh.data_rank * size - first, (mesh.data_rank + 1) * size - first)
        found[name] = (min(max(ends[0], 0), shard.numel), min(max(ends[1], 0), shard.numel))
        at += shard.numel
    return found


def held_state(net: nn.Module, state: Whole, mesh: Mesh, zero: int, buffers: dict[str, Tensor]) -> HeldState:
    held = shards(net, mesh)
    own = runs(held, mesh, zero)
    tensors = {
        kind: {n: part(whole, held[n]).view(-1)[own[n][0] : own[n][1]] for n, whole in by_name.items()}
        for kind, by_name in state.items()
    }
    return HeldState(own, tensors, buffers, replicated=zero == 0)


def write(path: Path, net: nn.Module, mesh: tuple[int, int, int], zero: int = 0, step: int = 7) -> Whole:
    """The checkpoint `path` of a numbered net, with a buffer; returns its weights and moments."""
    state = numbered(net)
    buffers = {"count": torch.tensor(5), "mean": torch.arange(3.0)}
    folder, manifests = unfinished(path), []
    folder.mkdir(parents=True)
    for rank in ranks(*mesh):
        held = held_state(net, state, rank, zero, buffers)
        tensors, items = written_by(held, shards(net, rank), rank)
        given = [(item, partial(item.piece.view, tensors[item.tensor])) for item in items]
        manifests.append(write_rank(folder, rank.rank, given))
    publish(folder, path, index(net, mesh, step).model_copy(update={"manifests": tuple(manifests)}))
    return state


def index(net: nn.Module, mesh: tuple[int, int, int], step: int) -> Index:
    return Index(
        step=step,
        samples=8 * step,
        mesh=dict(zip(("data", "offset", "tensor"), mesh, strict=True)),
        parameters={name: tuple(p.shape) for name, p in net.named_parameters()},
        buffers={"count": (), "mean": (3,)},
        run={"name": "test"},
        manifests=(),
    )
