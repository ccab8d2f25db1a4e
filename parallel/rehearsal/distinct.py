"""Which ranks of a mesh differ: in what they hold, and so in what they do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.layers import LayerKinds
from parallel.sharding.layout import offset_shares


def distinct_ranks(net: LayerKinds, mesh: Mesh, parallel: ParallelConfig) -> list[int]:
    """One rank of each kind, the last one; any rank of the mesh does what one of these does.

    In a model-parallel group ranks differ by the parts of parameters that they hold and count, and by the
    pairs they visit; among replicas the first one differs, which gives a checkpoint its weights, and under
    ZeRO those whose share of a parameter is cut short or empty.
    """
    places = [replace(mesh, rank=rank) for rank in range(mesh.model)]
    held = [_held(net, place) for place in places]
    sizes = [sorted({piece.shard.numel for piece in net.pieces(place)}) for place in places]
    found: dict[Any, int] = {}
    for rank in range(mesh.world):
        replica, model = divmod(rank, mesh.model)
        found[replica == 0, held[model], _share(replica, mesh.data, sizes[model], parallel.zero)] = rank
    return sorted(found.values())


def _held(net: LayerKinds, place: Mesh) -> tuple[Any, ...]:
    """Of a rank of a model-parallel group: the parts of parameters, and the blocks of pairs."""
    parts = tuple((piece.name, piece.shard.shape, piece.shard.counted(place)) for piece in net.pieces(place))
    blocks: list[Any] = []
    for mixer in (kind.mixer for kind in net.kinds if place.offset > 1):
        if "entry" in mixer.divided_axes() and mixer.schedule is not None:
            own = offset_shares(mixer, place.offset)[place.offset_rank].schedule(mixer.schedule)
            blocks += [
                tuple((b.products, b.pairs) for b in run) for run in (*own.classes, own.special_blocks)
            ]
    return parts, tuple(blocks)


def _share(replica: int, replicas: int, sizes: list[int], zero: int) -> tuple[int, ...]:
    """What a replica holds of parameters of these sizes: of each all (2), some (1) or nothing (0) of a share;
    without ZeRO-3 only the last share, of a flat buffer, can be short."""
    if zero < 3:
        return (int(replica < replicas - 1),) if zero else ()
    shares = ((size - replica * part) / part for size in sizes for part in (math.ceil(size / replicas),))
    return tuple(2 if share >= 1 else int(share > 0) for share in shares)
