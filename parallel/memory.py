"""Bytes that one rank needs, predicted: weights, gradients, optimizer states, activations, and the peak.

A step is walked through moment by moment: the loss, the backward pass of every layer, the optimizer.
What is alive at the worst of them is the peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.translution import Translution
from parallel.activations import LayerBytes, end_bytes, layer_bytes
from parallel.anatomy import Anatomy, LayerKind
from parallel.communication import widths
from parallel.engine import Precision
from parallel.mesh import Mesh, ParallelConfig
from parallel.shard import offset_share


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device.

    weights, gradients   as the engine holds them
    optimizer            Adam's moments, and float32 masters where there are any
    gathered             ZeRO-3: the weights and gradients that are whole for a moment
    saved                activations from forward to backward, of all layers
    transient            temporaries at the peak, collectives' buffers among them
    inputs               a micro-batch
    peak, moment         the most that is alive at once, and when
    host                 what lies in the node's memory for this rank
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    saved: int
    transient: int
    inputs: int
    peak: int
    moment: str
    host: int = 0


def step_memory(
    net: Anatomy,
    mesh: Mesh,
    parallel: ParallelConfig,
    batch: int,
    accumulate: int,
    precision: Precision,
    cpu: bool = False,
) -> Memory:
    """Predicts one rank's bytes in a training step (not the first, which has no optimizer states yet).

    `mesh` gives the rank; the fullest one is `fullest_rank`. `batch` is the global batch.
    """
    size, samples = widths(precision, parallel), batch // (accumulate * mesh.data)
    states, host = _states(net, mesh, parallel, precision)
    ends = end_bytes(net, mesh, samples, size)
    layers = [
        (kind, layer_bytes(net, kind, mesh, samples, size, cpu))
        for kind in net.kinds
        for _ in range(kind.count)
    ]
    policy = parallel.activations
    kept = [_kept(each, policy) for _, each in layers]
    saved = ends.embedding + sum(kept) + ends.head
    if policy == "block_cpu":
        host += sum(each.entry for _, each in layers)
    moments = list(_moments(net, mesh, parallel, size.weight, layers, kept, ends.embedding, accumulate))
    loss_gradients = states.gradients if accumulate > 1 else 0
    moments.append(("loss", loss_gradients, saved, ends.loss_work, 0))
    moments.append(("optimizer", states.gradients, 0, states.update, 0))
    moment, gradients, alive, transient, gathered = max(moments, key=lambda each: sum(each[1:]))
    peak = states.weights + states.optimizer + gradients + alive + transient + gathered + ends.inputs
    return Memory(
        states.weights,
        states.gradients,
        states.optimizer,
        max(each[4] for each in moments),
        saved,
        transient,
        ends.inputs,
        peak,
        moment,
        host,
    )


def fullest_rank(net: Anatomy, mesh: Mesh) -> Mesh:
    """The place of the mesh's first model-parallel group that holds most bank entries."""

    def entries(rank: int) -> int:
        shares = (offset_share(grid, mesh.offset)[rank] for grid in grids)
        return sum(len(share.entries or ()) for share in shares)

    mixers = [kind.layer.mixer for kind in net.kinds]
    grids = [mixer.grid for mixer in mixers if isinstance(mixer, Translution)]
    fullest = max(range(mesh.offset), key=entries)
    return Mesh(mesh.data, mesh.offset, mesh.tensor, fullest * mesh.tensor)


def _moments(
    net: Anatomy,
    mesh: Mesh,
    parallel: ParallelConfig,
    weight: int,
    layers: list[tuple[LayerKind, LayerBytes]],
    kept: list[int],
    embedding: int,
    accumulate: int,
) -> Iterator[tuple[str, int, int, int, int]]:
    """(name, gradients alive, activations alive, transient, gathered) of each layer's backward."""
    sharded = mesh.data if parallel.zero >= 2 else 1
    own = {kind.prefix: _layer_numbers(net, mesh, kind) for kind, _ in layers}
    total = sum(net.held(mesh).values())
    after = total - sum(sum(own[kind.prefix]) for kind, _ in layers)
    below = embedding + sum(kept)
    for index in range(len(layers) - 1, -1, -1):
        kind, each = layers[index]
        mixer, mlp = own[kind.prefix]
        below -= kept[index]
        again = 0 if parallel.activations == "none" else each.mixer
        whole = again if parallel.activations == "operator" else each.mixer + each.mlp
        done = total if accumulate > 1 else after + mlp
        fresh = mixer if accumulate > 1 or sharded > 1 else 0
        gathered = mixer * weight if parallel.zero == 3 else 0
        alive = below + each.entry + each.mixer
        gradients = (done + (0 if accumulate > 1 or sharded > 1 else mixer)) * weight // sharded
        yield f"layer {index} backward", gradients, alive, each.mixer_work + fresh * weight, gathered
        alive = below + each.entry + (whole if parallel.activations != "operator" else each.mixer + each.mlp)
        gradients = (total if accumulate > 1 else after + mlp) * weight // sharded
        yield f"layer {index} backward", gradients, alive, each.mlp_work, 0
        after += mixer + mlp


def _kept(each: LayerBytes, policy: str) -> int:
    if policy == "block_cpu":
        return 0
    if policy == "block":
        return each.entry
    return each.entry + each.mlp + (each.entry if policy == "operator" else each.mixer)


def _layer_numbers(net: Anatomy, mesh: Mesh, kind: LayerKind) -> tuple[int, int]:
    """The parameters of one layer's mixer, and all its others."""
    own = [p for p in net.pieces(mesh) if p.name.startswith(kind.prefix)]
    mixer = sum(p.shard.numel for p in own if ".mixer." in p.name)
    return mixer, sum(p.shard.numel for p in own) - mixer


@dataclass(frozen=True)
class _States:
    weights: int
    gradients: int
    optimizer: int
    update: int  # what the optimizer takes for a moment


def _states(net: Anatomy, mesh: Mesh, parallel: ParallelConfig, precision: Precision) -> tuple[_States, int]:
    """Weights, gradients and optimizer states, and the bytes that offloading moves to the host."""
    held, number = sum(net.held(mesh).values()), widths(precision, parallel).weight
    if parallel.zero == 0:
        return _States(held * number, held * number, held * 8, 0), 0
    share = -(-held // mesh.data)
    weights = (share if parallel.zero == 3 else held) * number
    gradients = (share if parallel.zero >= 2 else held) * number
    optimizer = share * 12  # moments and masters
    if parallel.offload_optimizer:
        return _States(weights, gradients, 0, 0), optimizer
    return _States(weights, gradients, optimizer, share * 4), 0
