"""Loading a checkpoint of any mesh, engine and ZeRO stage: each rank reads what it holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import BUFFER
from parallel.checkpoint.pieces import pieces
from parallel.checkpoint.planners import Item, ShardLoadPlanner
from parallel.checkpoint.save import State, first_failure
from parallel.checkpoint.storage import RankFilesReader
from parallel.engine.interface import WEIGHT, HeldState
from parallel.processes import checkpoint_group
from parallel.sharding.layout import Shard


@torch.no_grad()
def load_state(catalogue: Catalogue, state: HeldState, held: Mapping[str, Shard]) -> int:
    """Collective: fills the tensors of `state`; returns the bytes of tensors that this rank has read.

    `held` is the part of each parameter that this mesh place holds. Raises Damaged on every rank; some of
    the tensors are filled then.
    """
    tensors: State = {}
    items: list[Item] = []
    for kind, by_name in state.tensors.items():
        for name, tensor in by_name.items():
            tensors[f"{kind}/{name}"] = tensor
            shard = held[name]
            if shard.dim is not None and shard.stop > shard.full[shard.dim]:
                tensor.zero_()  # the padding of a vocabulary is not saved
            items += [Item(kind, piece) for piece in pieces(name, shard, state.runs[name])]
    for name, buffer in state.buffers.items():
        tensors[f"{BUFFER}/{name}"] = buffer.view(-1)
        items += _whole(BUFFER, name, Shard(tuple(buffer.shape)))
    return _load(catalogue, tensors, items, alone=not dist.is_initialized())


@torch.no_grad()
def read_part(catalogue: Catalogue, name: str, shard: Shard | None = None) -> Tensor:
    """A parameter's weights, whole or one mesh place's part of them, or a buffer, in host memory.

    Not collective. Raises Damaged, and KeyError for a name that the checkpoint does not have.
    """
    index = catalogue.contents.index
    if name in index.buffers:
        kind, shard = BUFFER, Shard(tuple(index.buffers[name]))
    else:
        kind = WEIGHT
        bank = catalogue.is_bank(f"{kind}/{name}")
        shard = shard or Shard(tuple(index.parameters[name]), bank=bank)
    key = f"{kind}/{name}"
    flat = torch.zeros(shard.numel, dtype=catalogue.dtype(key))
    _load(catalogue, {key: flat}, _whole(kind, name, shard), alone=True)
    return flat.view(shard.shape)


def _whole(kind: str, name: str, shard: Shard) -> list[Item]:
    return [Item(kind, piece) for piece in pieces(name, shard, (0, shard.numel))]


def _load(catalogue: Catalogue, tensors: State, items: list[Item], alone: bool) -> int:
    planner = ShardLoadPlanner(items)
    reader = RankFilesReader(catalogue, planner.keys)
    group = None if alone else checkpoint_group()
    try:
        # DCP wants plain dicts; the tensors are filled in place.
        load(tensors, storage_reader=reader, planner=planner, process_group=group, no_dist=alone)
    except CheckpointException as error:
        raise first_failure(error) from None
    return reader.bytes_read
