"""Floating-point operations of a training step, two for each multiply-add."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from models.mixers.cost import Load
from models.mixers.interface import Mixer
from models.transformer import GPTConfig, ViTConfig
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.layers import LayerKind, LayerKinds, mixer_load


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
        forward = _stem(net) + 2 * config.width * config.classes
    training = 3 * forward
    for kind in net.kinds:
        load = Load(part=mesh.offset_rank if own_rank else None)
        cost = net.cost(kind.mixer, mixer_load(kind.mixer, mesh, load))
        mixer, again = (cost.forward, cost.recomputed) if cost else (0, 0)
        if kind.layer.reduce is not None and (cost := net.cost(kind.layer.reduce, Load())):
            forward += cost.forward
            training += 3 * cost.forward + cost.recomputed
        layer = mixer + _feed_forward(net, kind) // mesh.model
        if kind.layer.local is not None and (cost := net.cost(kind.layer.local, Load())):
            layer += cost.forward
        again += {"none": 0, "operator": mixer}.get(parallel.activations, layer)
        forward += kind.repeats * layer
        training += kind.repeats * (3 * layer + again)
    return Flops(forward, 3 * forward, training)


def _feed_forward(net: LayerKinds, kind: LayerKind) -> int:
    if isinstance(kind.layer.mlp, Mixer):
        cost = net.cost(kind.layer.mlp, Load())
        return cost.forward if cost else 0
    return 4 * kind.layer.mlp_tokens * net.config.width * net.config.mlp


def _stem(net: LayerKinds) -> int:
    """Patches to tokens, and a projected position code."""
    config, positions = net.config, net.net.positions
    assert isinstance(config, ViTConfig)
    patches, code = math.prod(config.grid), 0
    if isinstance(positions, nn.Module):
        code = sum(2 * patches * p.numel() for p in positions.parameters() if p.dim() > 1)
    if config.stem.kind == "patches":
        return 2 * patches * config.channels * math.prod(config.patch_shape) * config.width + code
    cost = net.cost(net.net.patch_embedding, Load())
    return (cost.forward if cost else 0) + code
