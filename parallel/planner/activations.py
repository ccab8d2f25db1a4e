"""Bytes that a training step keeps of its activations, layer by layer, and takes for a moment.

T below is the number of tokens of a rank's micro-batch, B·N. What autograd saves was read off the
layers (models/transformer.py) and the operator (models/ops/streamed.py), and compared with every
allocation of small nets (tests/parallel/planner/test_plan.py).
"""

from __future__ import annotations

from typing import NamedTuple

from models.gpt import GPTConfig
from models.mixers.attention import Attention
from models.mixers.translution import Translution
from models.ops.schedule import CPU_CHUNK_BYTES
from models.ops.streamed import Operand
from parallel.mesh import Mesh
from parallel.planner.layers import Anatomy, LayerKind, MixerShape, mixer_shape
from parallel.planner.traffic import Widths


class LayerBytes(NamedTuple):
    """One layer's bytes.

    entry     the residual stream it was given, which autograd or a checkpoint saves
    mixer, mlp   what else is saved of each when nothing is checkpointed
    mixer_work, mlp_work   what backward takes beyond that, for a moment, without parameters' gradients
    """

    entry: int
    mixer: int
    mlp: int
    mixer_work: int
    mlp_work: int


class EndBytes(NamedTuple):
    """Outside of the layers: saved by the embedding and by norm and head; taken by the loss, beyond
    what is saved, at its worst; the input."""

    embedding: int
    head: int
    loss_work: int
    inputs: int


def layer_bytes(
    net: Anatomy, kind: LayerKind, mesh: Mesh, samples: int, size: Widths, cpu: bool
) -> LayerBytes:
    """Of one layer of this kind for a micro-batch of `samples` on this rank."""
    T, C, M = samples * net.tokens, net.config.width, net.config.mlp // mesh.model
    shape = mixer_shape(kind.layer.mixer, mesh)
    residual, dropped = T * C * size.residual, T * C * bool(net.config.dropout)
    cast = size.product if size.product != size.residual else 0  # autocast saves its own copy
    normed = 2 * T * 4 + dropped
    mlp = residual + normed + T * C * (cast or size.residual) + 2 * T * M * size.product
    mlp_work = residual + T * M * size.product + (T * C * size.product if mesh.model > 1 else 0)
    if isinstance(kind.layer.mixer, Attention):
        own = shape.values
        saved = normed + T * C * (cast or size.residual) + 5 * T * own * size.product + T * shape.heads * 4
        work = residual + 4 * T * own * size.product
        return LayerBytes(residual, saved, mlp, work, mlp_work)
    saved, work = _operator_bytes(net, kind, shape, mesh, samples, size, cpu)
    if cast:
        saved += T * C * cast
    return LayerBytes(residual, saved + normed, mlp, work + residual, mlp_work)


def _operator_bytes(
    net: Anatomy, kind: LayerKind, shape: MixerShape, mesh: Mesh, samples: int, size: Widths, cpu: bool
) -> tuple[int, int]:
    """What Translution saves of x, its sources and its result, and what its backward takes."""
    mixer, T = kind.layer.mixer, samples * net.tokens
    assert isinstance(mixer, Translution)
    other = sum(shape.sources) - (shape.width if mixer.rank is None else 0)
    saved = T * shape.width * size.residual + T * other * size.product
    saved += T * (shape.heads + shape.values) * size.statistics
    averaged = shape.inner // mesh.tensor if shape.lifts else 0
    saved += T * averaged * size.product
    if size.product != size.statistics:
        saved += T * shape.values * size.product
    every = operands(mixer, shape, mesh)
    if mixer.recipe.keep:
        each = sum(width for _, _, width in every) * size.product
        saved += mixer.plan.pairs // mesh.offset * samples * each
    work = T * (shape.values * size.product + shape.heads * 4 + sum(shape.sources) * size.statistics)
    if mesh.offset > 1 and len(shape.sources) > 1:  # summed in one piece
        work += T * sum(shape.sources) * size.statistics
    return saved, work + _scratch(mixer, shape, every, mesh, samples, size, cpu)


def operands(mixer: Translution, shape: MixerShape, mesh: Mesh) -> list[tuple[Operand, str, int]]:
    """Every operand of the operator with the side of the pair it is read from and its width D."""
    own, narrow = shape.inner // mesh.tensor, mixer.heads * (mixer.rank or 0) // mesh.tensor
    found: list[tuple[Operand, str, int]] = []
    for segment, (query, key) in enumerate(mixer.recipe.logits):
        width = narrow if segment else own
        found += [(query, "query", width), (key, "key", width)]
    return found + [(v, "key", narrow if segment else own) for segment, v in enumerate(mixer.recipe.values)]


def _scratch(
    mixer: Translution,
    shape: MixerShape,
    every: list[tuple[Operand, str, int]],
    mesh: Mesh,
    samples: int,
    size: Widths,
    cpu: bool,
) -> int:
    """Temporaries of the largest chunk of pairs (models/ops: streamed.py cuts them, the others name them)."""
    plan, workspace = mixer.plan, mixer.recipe.workspace
    read = {(o.source, side) for o, side, _ in every}
    # Products that are summed, in float32.
    summed = 3 * max(w for *_, w in every) * size.statistics if size.product != size.statistics else 0
    pair_bytes = sum(shape.sources[source] for source, _ in read) * (size.product + size.statistics)
    pair_bytes += 2 * sum(width for *_, width in every) * size.product + summed
    step = plan.batch_slice(samples, pair_bytes, workspace)
    if cpu:
        workspace = min(workspace, CPU_CHUNK_BYTES)
    class_pairs = plan.grid.grid_tokens
    fitting = min(workspace // (class_pairs * step * pair_bytes), -(-len(plan.classes) // mesh.offset))
    pairs = fitting * class_pairs or plan.largest_block
    multiplied = {(o.source, side) for o, side, _ in every if o.bank is not None}
    copied = pairs if fitting else plan.largest_copy(step == samples)
    rows = copied * sum(shape.sources[source] for source, _ in multiplied) * (size.product + size.statistics)
    numbers = sum(width for *_, width in every)  # keys and values, or their gradients; ∂q
    numbers += sum(width for o, side, width in every if side == "query" and o.bank is not None)
    if fitting:  # rows of the output's gradient, and of sources that no bank multiplies
        numbers += shape.values + sum(shape.sources[source] for source, _ in read - multiplied)
    return step * (rows + pairs * (numbers * size.product + summed))


def end_bytes(net: Anatomy, mesh: Mesh, samples: int, size: Widths) -> EndBytes:
    """Embedding, last norm, head and loss for a micro-batch of `samples` on this rank."""
    config, T, C = net.config, samples * net.tokens, net.config.width
    norm = T * C * size.residual + 2 * T * 4
    if isinstance(config, GPTConfig):
        logits = T * -(-config.vocabulary // mesh.model)
        saved = norm + T * C * size.residual + logits * 4
        return EndBytes(0, saved, 2 * logits * 4, 2 * T * 8)
    patch = config.channels * config.patch_size**2
    rows = samples * config.grid[0] * config.grid[1]
    embedding = 2 * rows * patch * 4 + rows * C * size.product + 4 * rows * 4
    logits = samples * config.classes
    return EndBytes(
        embedding,
        norm + T * C * size.residual + logits * 4,
        2 * logits * 4,
        rows * patch * 4 + samples * 8,
    )
