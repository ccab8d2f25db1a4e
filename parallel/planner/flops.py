"""Floating-point operations of a training step, two for each multiply-add."""

from __future__ import annotations

import math
from typing import NamedTuple

from models.mixers.cost import Load
from models.transformer import GPTConfig
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.layers import LayerKinds, mixer_load


class Flops(NamedTuple):
    """FLOPs of one sample.

    forward    the forward pass
    model      training without recomputation: three times forward
    training   what is actually executed, recomputation included
    """

    forward: int
    model: int
    training: int


def sample_flops(net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, own_rank: bool = False) -> Flops:
    """One rank's matrix products and attention for one sample; Mesh() is the whole net.

    Mixers divide their work over the axes that they declare; feed-forward and vocabulary over all ranks
    of the model-parallel group. A mixer whose cost is not known counts as 0. With `own_rank` the mesh's own
    rank's share of the pairs, else the busiest rank's.
    """
    config = net.config
    if isinstance(config, GPTConfig):
        forward = 2 * net.tokens_out * config.width * -(-config.vocabulary // mesh.model)
    else:
        patch, patches = config.channels * math.prod(config.patch_shape), math.prod(config.grid)
        forward = 2 * patches * patch * config.width + 2 * config.width * config.classes
    training = 3 * forward
    for kind in net.kinds:
        load = Load(part=mesh.offset_rank if own_rank else None)
        cost = net.cost(kind.mixer, mixer_load(kind.mixer, mesh, load))
        mixer, again = (cost.forward, cost.recomputed) if cost else (0, 0)
        if kind.layer.reduce is not None and (cost := net.cost(kind.layer.reduce, Load())):
            forward += cost.forward
            training += 3 * cost.forward + cost.recomputed
        layer = mixer + 4 * kind.tokens * config.width * config.mlp // mesh.model
        again += {"none": 0, "operator": mixer}.get(parallel.activations, layer)
        forward += kind.repeats * layer
        training += kind.repeats * (3 * layer + again)
    return Flops(forward, 3 * forward, training)
