"""Bytes of a training step's activations: saved for backward, layer by layer, and temporary.

T below is the number of tokens of a rank's micro-batch, B·N. What autograd saves was read off
models/transformer.py and compared with every allocation of small nets
(tests/parallel/planner/test_plan.py); mixers give their own cost.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from models.mixers.cost import Cost, Load, Sizes
from models.mixers.interface import Mixer
from models.ops import cross_entropy
from models.ops.cards import CARDS
from models.transformer import GPTConfig
from parallel.mesh import Mesh
from parallel.planner.layers import LayerKind, LayerKinds, mixer_load

PLANNED_CARD = CARDS["h100"]  # whose kernels' temporaries stand for any card's: all keep to the workspace


class LayerBytes(NamedTuple):
    """One layer's bytes.

    entry                  the residual stream at its input, which autograd or a checkpoint saves
    mixer, mlp             what else each saves when nothing is checkpointed
    mixer_work, mlp_work   temporaries of backward, gradients of parameters excluded
    """

    entry: int
    mixer: int
    mlp: int
    mixer_work: int
    mlp_work: int


class EndBytes(NamedTuple):
    """Bytes outside the layers: saved by the embedding, and by norm and head; temporaries of the loss; the
    input."""

    embedding: int
    head: int
    loss_work: int
    inputs: int


def layer_bytes(
    net: LayerKinds, kind: LayerKind, mesh: Mesh, samples: int, size: Sizes, cpu: bool, counted: bool = True
) -> LayerBytes:
    """Of one layer of this kind for a micro-batch of `samples` on this rank; unless `counted`, temporaries of
    mixers are their own figures alone, which takes no time."""
    config, layer, T, C = net.config, kind.layer, samples * kind.tokens, net.config.width
    residual, dropped = T * C * size.residual, T * C * bool(config.dropout)
    cast = size.product if size.product != size.residual else 0  # autocast saves its own copy
    normed = 2 * T * 4 + dropped
    scaled = T * C * size.product * bool(config.layer_scale)
    load, inner = Load(samples, size, cpu=cpu), samples * layer.mlp_tokens
    hidden = inner * (config.mlp // mesh.model) * size.product
    if isinstance(layer.mlp, Mixer) and (cost := net.cost(layer.mlp, load)):
        mlp, mlp_work = residual + normed + cost.saved, residual + cost.work
    else:
        inputs = inner * C * (cast or size.residual)
        mlp = residual + normed + inputs + (1 if config.feed_forward == "relu" else 2) * hidden + scaled
        mlp_work = residual + hidden + (inner * C * size.product if mesh.model > 1 else 0)
    if layer.local is not None and (cost := net.cost(layer.local, load)):
        mlp, mlp_work = mlp + residual + normed + cost.saved + scaled, max(mlp_work, residual + cost.work)
    part = mixer_load(kind.mixer, mesh, load)
    cost = net.cost(kind.mixer, part)
    saved, work = normed + scaled, residual
    if cost:
        saved, work = saved + cost.saved, work + (_work(net, kind, part, cost) if counted else cost.work)
    if layer.reduce is not None and (cost := net.cost(layer.reduce, load)):
        mlp, mlp_work = mlp + cost.saved, max(mlp_work, cost.work)
    in_mixer, in_mlp = _cast_weights(net, kind, mesh, size)
    saved, mlp = saved + in_mixer, mlp + in_mlp
    return LayerBytes(residual, saved, mlp, work, mlp_work)


def _cast_weights(net: LayerKinds, kind: LayerKind, mesh: Mesh, size: Sizes) -> tuple[int, int]:
    """Autocast's copies of linear layers' weights, which backward reads: in the mixer, and in all else."""
    found = [0, 0]
    for piece in net.pieces(mesh) if size.product != size.weight else ():
        if piece.name.startswith(kind.prefix) and piece.part != "banks" and len(piece.shard.full) == 2:
            found[f"{kind.prefix}mixer." not in piece.name] += piece.shard.numel * size.product
    return found[0], found[1]


def _work(net: LayerKinds, kind: LayerKind, load: Load, cost: Cost) -> int:
    """Temporaries of a mixer's backward: its own figure, or for one that visits pairs on a card what the
    kernels that are chosen there allocate, with the sum over ranks of all sources' gradients."""
    if load.cpu or kind.mixer.schedule is None:
        return cost.work
    dtype = torch.bfloat16 if load.sizes.product == 2 else torch.float32
    counted = net.counted(kind.mixer, load, PLANNED_CARD, dtype)
    if counted is None:
        return cost.work
    several = load.pair_parts > 1 and len(cost.source_gradients) > 1
    return counted.work_bytes + several * sum(cost.source_gradients)


def end_bytes(net: LayerKinds, mesh: Mesh, samples: int, size: Sizes) -> EndBytes:
    """Embedding, last norm, head and loss for a micro-batch of `samples` on this rank."""
    config, T, C = net.config, samples * net.tokens_out, net.config.width
    norm = T * C * size.residual + 2 * T * 4
    if isinstance(config, GPTConfig):
        return EndBytes(
            0, norm + _head_gradients(net, mesh, T, size), _loss_work(net, mesh, T, size), 2 * T * 8
        )
    patch = config.channels * math.prod(config.patch_shape)
    rows = samples * math.prod(config.grid)
    embedding = rows * patch * (size.residual + size.product) + rows * C * size.product + 4 * rows * 4
    if config.stem.kind != "patches":
        cost = net.cost(net.net.patch_embedding, Load(samples, size))
        embedding = cost.saved if cost else 0
    logits = samples * config.classes
    return EndBytes(
        embedding,
        norm + T * C * size.residual + logits * 4,
        2 * logits * 4,
        samples * config.channels * math.prod(config.image_shape) * 4 + samples * 8,
    )


def _head_gradients(net: LayerKinds, mesh: Mesh, T: int, size: Sizes) -> int:
    """Of the head's input and weight, which the loss in chunks computes in forward."""
    C, words = net.config.width, _words(net, mesh)
    return T * C * size.residual + words * C * 4


def _loss_work(net: LayerKinds, mesh: Mesh, T: int, size: Sizes) -> int:
    """Of models/ops/cross_entropy.py: in forward the input, the weight in the products' dtype, a chunk's
    logits and a chunk's share of the weight's gradient; in backward both gradients times the loss's."""
    C, words = net.config.width, _words(net, mesh)
    rows = min(T, max(1, cross_entropy.CHUNK_LOGITS // words))
    low = size.product if size.product < 4 else 0
    share = words * C * (low or 4) if low or rows < T else 0
    cast = words * C * size.product if size.product != size.weight else 0
    forward = T * C * size.residual + cast + rows * words * (4 + low) + share
    return max(forward, _head_gradients(net, mesh, T, size))


def _words(net: LayerKinds, mesh: Mesh) -> int:
    """Rows of the head's weight on a rank."""
    assert isinstance(net.config, GPTConfig)
    return -(-net.config.vocabulary // mesh.model)
