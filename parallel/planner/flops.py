"""Floating-point operations of a training step, two for each multiply-add."""

from __future__ import annotations

from typing import NamedTuple

from models.gpt import GPTConfig
from models.mixers.translution import Translution
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.activations import operands
from parallel.planner.layers import Anatomy, LayerKind, mixer_shape


class Flops(NamedTuple):
    """Of one sample: the forward pass; training as an ideal machine has it (three times that); and as
    it is done, with what backward computes anew."""

    forward: int
    model: int
    training: int


def sample_flops(net: Anatomy, mesh: Mesh, parallel: ParallelConfig) -> Flops:
    """One rank's matrix products and attention for one sample; Mesh() is the whole net.

    The pairs of a Translution are spread over offset and tensor ranks, heads of other projections over
    tensor ranks only; feed-forward and vocabulary over both.
    """
    config, N = net.config, net.tokens
    if isinstance(config, GPTConfig):
        forward = 2 * N * config.width * -(-config.vocabulary // mesh.model)
    else:
        patch = config.channels * config.patch_size**2
        rows = config.grid[0] * config.grid[1]
        forward = 2 * rows * patch * config.width + 2 * config.width * config.classes
    training = 3 * forward
    for kind in net.kinds:
        pairs, dense = _mixer(kind, N, mesh)
        mlp = 4 * N * config.width * config.mlp // mesh.model
        layer = pairs + dense + mlp
        again = {"none": 0, "operator": pairs + dense}.get(parallel.activations, layer)
        mixer = kind.layer.mixer
        if isinstance(mixer, Translution) and not mixer.recipe.keep:
            again += pairs  # backward computes q, k and v of every pair
        forward += kind.count * layer
        training += kind.count * (3 * layer + again)
    return Flops(forward, 3 * forward, training)


def _mixer(kind: LayerKind, tokens: int, mesh: Mesh) -> tuple[int, int]:
    """FLOPs forward of the pass over pairs, and of the projections around it."""
    mixer = kind.layer.mixer
    projections = [p for name, p in mixer.named_parameters() if name.endswith(".weight")]
    dense = sum(2 * tokens * p.numel() for p in projections) // mesh.tensor
    shape = mixer_shape(mixer, Mesh())
    if not isinstance(mixer, Translution):
        pairs = tokens * (tokens + 1) // 2 if mixer.causal else tokens * tokens
        return 4 * pairs * shape.inner // mesh.tensor, dense
    blocks = [block for blocks in (*mixer.grid.classes, mixer.grid.special_blocks) for block in blocks]
    products = (block.products for block in blocks)
    query_rows, key_rows = (sum(side) for side in zip(*products, strict=True))
    total = 0
    for operand, side, width in operands(mixer, shape, Mesh()):
        if operand.bank is not None:
            rows = query_rows if side == "query" else key_rows
            total += 2 * rows * shape.sources[operand.source] * width
        total += mixer.grid.num_pairs * width  # half of ⟨q, k⟩, or of a·v
    values = sum(width for *_, width in operands(mixer, shape, Mesh())[-len(mixer.recipe.values) :])
    total += mixer.grid.num_pairs * values
    return total // mesh.model, dense
