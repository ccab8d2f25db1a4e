"""What one training step sends, predicted from the net: every collective of offset.py, tensor.py,
vocabulary.py, fairscale's layers and the engines, as payload bytes (traffic.py has the convention).

A pass over a layer forward sends the softmax parts of its pairs, and its partial sums where heads and
the feed-forward leave their ranks; backward sends the gradients of what entered. Layers that are
checkpointed run forward twice.
"""

from __future__ import annotations

from typing import NamedTuple

from models.gpt import GPTConfig
from models.transformer import Layer
from models.translution import Translution
from parallel.anatomy import Anatomy, LayerKind
from parallel.engine import Precision
from parallel.mesh import Mesh, ParallelConfig
from parallel.traffic import Traffic


class Widths(NamedTuple):
    """Bytes of a number: of the residual stream, of what matrix products give, of a held weight, and of
    softmax statistics."""

    residual: int
    product: int
    weight: int
    statistics: int = 4


def widths(precision: Precision, parallel: ParallelConfig) -> Widths:
    """As autocast has it on CUDA (torch engine), or with weights in bfloat16 (DeepSpeed)."""
    if precision == "fp32":
        return Widths(4, 4, 4)
    return Widths(4, 2, 4) if parallel.engine == "torch" else Widths(2, 2, 2)


def step_traffic(
    net: Anatomy, mesh: Mesh, parallel: ParallelConfig, batch: int, accumulate: int, precision: Precision
) -> Traffic:
    """Payloads of one optimizer step of this rank; `batch` is the global batch."""
    samples = batch // (accumulate * mesh.data)
    activations = micro_batch_traffic(net, mesh, parallel, samples, precision)
    return activations.times(accumulate) + _state_traffic(net, mesh, parallel, accumulate, precision)


def micro_batch_traffic(
    net: Anatomy, mesh: Mesh, parallel: ParallelConfig, samples: int, precision: Precision
) -> Traffic:
    """Payloads of the model-parallel axes for one micro-batch of `samples` per data rank."""
    size, tokens = widths(precision, parallel), samples * net.tokens
    total = Traffic()
    for kind in net.kinds:
        mixer, mlp = _mixer_forward(kind.layer, mesh, tokens, size), _mlp_forward(kind.layer, mesh, tokens, size)
        layer = mixer + mlp
        if parallel.activations == "operator":
            layer += mixer
        elif parallel.activations != "none":
            layer += mixer + mlp
        layer += _backward(net, kind, mesh, tokens, size)
        total += layer.times(kind.count)
    if isinstance(net.config, GPTConfig) and mesh.model > 1:
        width = net.config.width
        total.add("model", "all_reduce", tokens * width * size.weight)  # embedding, forward
        total.add("model", "all_reduce", tokens * width * size.residual)  # head, backward
        total.add("model", "all_reduce", 3 * tokens * 4)  # maxima, target logits, sums
    return total


def _mixer_forward(layer: Layer, mesh: Mesh, tokens: int, size: Widths) -> Traffic:
    mixer, traffic = layer.mixer, Traffic()
    inner, width = mixer.out.in_features, mixer.out.out_features
    if isinstance(mixer, Translution) and mesh.offset > 1:
        heads = mixer.heads // mesh.tensor
        values = heads * (mixer.head_dim + (mixer.rank or 0) * (len(mixer.recipe.values) - 1))
        traffic.add("offset", "all_reduce", tokens * heads * size.statistics)  # maxima
        traffic.add("offset", "all_reduce", tokens * (values + heads) * size.statistics)
    if mesh.tensor > 1:
        traffic.add("tensor", "all_reduce", tokens * width * size.product)
        if hasattr(mixer, "v_up"):
            traffic.add("tensor", "all_reduce", tokens * inner * size.product)
    return traffic


def _mlp_forward(layer: Layer, mesh: Mesh, tokens: int, size: Widths) -> Traffic:
    traffic = Traffic()
    if mesh.model > 1:
        traffic.add("model", "all_reduce", tokens * layer.mlp.down.out_features * size.product)
    return traffic


def _backward(net: Anatomy, kind: LayerKind, mesh: Mesh, tokens: int, size: Widths) -> Traffic:
    mixer, traffic = kind.layer.mixer, Traffic()
    inner, width = mixer.out.in_features, mixer.out.out_features
    if mesh.model > 1:
        traffic.add("model", "all_reduce", tokens * width * size.residual)  # into the feed-forward
    narrow: list[int] = []
    if isinstance(mixer, Translution):
        narrow = [linear.out_features for name, linear in mixer.named_children() if name.endswith("_down")]
    if mesh.tensor > 1:
        traffic.add("tensor", "all_reduce", tokens * width * size.residual)
        traffic.add("tensor", "all_reduce", tokens * sum(narrow) * size.product)
        if hasattr(mixer, "v_up"):
            traffic.add("tensor", "all_gather", tokens * inner * size.product)
    if isinstance(mixer, Translution) and mesh.offset > 1:
        sources = source_widths(mixer, mesh)
        traffic.add("offset", "all_reduce", tokens * sum(sources) * size.statistics)
        if mixer.grid.num_entries != mixer.grid.num_offsets:  # all ranks hold these banks whole
            held = [p for p in net.pieces(mesh) if p.name.startswith(kind.prefix) and p.part == "banks"]
            traffic.add("offset", "all_reduce", sum(p.shard.numel for p in held) * size.weight)
    return traffic


def source_widths(mixer: Translution, mesh: Mesh) -> list[int]:
    """The widths C_s of the operator's sources on one rank."""
    inner = mixer.heads * mixer.head_dim // mesh.tensor
    shared = [inner for name in "qkv" if hasattr(mixer, name)]
    if mixer.rank is None:
        return [mixer.dim, *shared]
    return shared + [mixer.heads * mixer.rank for name in "qkv" if hasattr(mixer, f"{name}_down")]


def _state_traffic(
    net: Anatomy, mesh: Mesh, parallel: ParallelConfig, accumulate: int, precision: Precision
) -> Traffic:
    """Gradients, weights and scalars: what does not grow with the batch."""
    held, traffic = sum(net.held(mesh).values()), Traffic()
    if mesh.data > 1:
        traffic.add("data", "all_reduce", 4)  # the loss
    if parallel.engine == "torch":
        if mesh.data > 1:
            traffic.add("data", "all_reduce", held * 4)
        if mesh.model > 1:
            traffic.add("model", "all_reduce", 4)  # the gradient's norm
    return traffic
