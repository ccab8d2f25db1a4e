"""Predicts the bytes that one rank needs: weights, gradients, optimizer states, activations, and the peak.

The peak is the worst moment of a step: the loss, the backward pass of some layer, or the optimizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from parallel.engine.torch_engine import Precision
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.activations import EndBytes, LayerBytes, end_bytes, layer_bytes
from parallel.planner.layers import LayerKind, LayerKinds
from parallel.planner.traffic import gradient_size, number_sizes, rank_zero_sizes
from parallel.sharding.layout import offset_shares

# Numbers that DeepSpeed without ZeRO copies into one flat tensor to send them.
FLAT_COPY = 500_000_000
# Modelled. A communicator has 24 channels with a ring's and a tree's two peers each, and for each of these a
# FIFO of every protocol: 4 MiB (NCCL_BUFFSIZE), and about 5 and 0.5 MiB (LL128, LL).
CUDA_CONTEXT = 500 << 20
NCCL_COMMUNICATOR = 24 * 4 * int(9.5 * 2**20)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device.

    weights, gradients   as the engine holds them
    optimizer            Adam's moments, and float32 masters where there are any
    gathered             ZeRO-3: weights and gradients gathered for one module
    saved                activations kept from forward to backward, of all layers
    transient            temporaries at the peak, buffers of collectives included
    inputs               a micro-batch
    peak, moment         the most that is alive at once, and when
    host                 in the node's memory, for this rank
    runtime              CUDA's context and NCCL's buffers, beside the peak: modelled, not measured
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
    runtime: int = 0

    @property
    def needed(self) -> int:
        """Bytes of the device that the process takes."""
        return self.peak + self.runtime


def step_memory(
    net: LayerKinds,
    mesh: Mesh,
    parallel: ParallelConfig,
    batch: int,
    accumulate: int,
    precision: Precision,
    cpu: bool = False,
    counted: bool = True,
) -> Memory:
    """Predicts one rank's bytes in a training step (not the first, which has no optimizer states yet);
    `counted`: see `layer_bytes`.

    `mesh` gives the rank; the fullest one is `fullest_rank`. `batch` is the global batch.
    """
    size, samples = number_sizes(precision, parallel), batch // (accumulate * mesh.data)
    states, host = _states(net, mesh, parallel, precision)
    ends = end_bytes(net, mesh, samples, size)
    layers = [
        (kind, layer_bytes(net, kind, mesh, samples, size, cpu, counted))
        for kind in net.kinds
        for _ in range(kind.repeats)
    ]
    kept = [_kept(each, parallel.activations) for _, each in layers]
    saved = ends.embedding + sum(kept) + ends.head
    if parallel.activations == "block_cpu":
        host += sum(each.entry for _, each in layers)
    numbers = _NumberBytes(size.weight, gradient_size(precision, parallel))
    moments = list(_moments(net, mesh, parallel, numbers, layers, kept, ends, accumulate))
    moments.append(Moment("optimizer", states.gradients, 0, states.update, 0))
    worst = max(moments, key=lambda each: sum(each[1:]))
    peak = sum(worst[1:]) + states.weights + states.optimizer + states.buffers + ends.inputs
    return Memory(
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        gathered=max(each.gathered for each in moments),
        saved=saved,
        transient=worst.transient + states.buffers,
        inputs=ends.inputs,
        peak=peak,
        moment=worst.name,
        host=host,
        runtime=0 if cpu else _runtime(mesh),
    )


def _runtime(mesh: Mesh) -> int:
    """Of a process on CUDA: one communicator for each group of the mesh with ranks of its own."""
    axes = {"data": mesh.data > 1, "model": mesh.model > 1}
    axes |= {"offset": 1 < mesh.offset < mesh.model, "tensor": 1 < mesh.tensor < mesh.model}
    return CUDA_CONTEXT + sum(axes.values()) * NCCL_COMMUNICATOR


def fullest_rank(net: LayerKinds, mesh: Mesh) -> Mesh:
    """The place of the mesh's first model-parallel group that holds most bank entries."""

    def entries(rank: int) -> int:
        shares = (offset_shares(mixer, mesh.offset)[rank] for mixer in mixers)
        return sum(len(share.entries or ()) for share in shares)

    mixers = [kind.mixer for kind in net.kinds if "entry" in kind.mixer.divided_axes()]
    fullest = max(range(mesh.offset), key=entries)
    return Mesh(mesh.data, mesh.offset, mesh.tensor, fullest * mesh.tensor)


class _NumberBytes(NamedTuple):
    """Of a weight, and of a gradient that is kept."""

    weight: int
    gradient: int


class Moment(NamedTuple):
    """Bytes alive at a time: gradients, saved activations, temporaries, and what ZeRO-3 has gathered."""

    name: str
    gradients: int
    activations: int
    transient: int
    gathered: int


def _moments(
    net: LayerKinds,
    mesh: Mesh,
    parallel: ParallelConfig,
    size: _NumberBytes,
    layers: list[tuple[LayerKind, LayerBytes]],
    kept: list[int],
    ends: EndBytes,
    accumulate: int,
) -> Iterator[Moment]:
    """The loss, then backward through feed-forward and mixer of every layer, from the last."""
    held, zero3 = net.held(mesh), parallel.zero == 3
    total = sum(held.values())
    own = {kind.prefix: _layer_numbers(net, mesh, kind) for kind, _ in layers}
    # New gradients exist beside those they are added to.
    adds = accumulate > 1 or parallel.zero >= 2 or size.gradient != size.weight
    sizes = rank_zero_sizes(net, mesh, parallel)

    def gradients(done: int) -> int:
        """Bytes of the gradients that stay, when those of `done` parameters have been computed."""
        if zero3 or accumulate > 1:  # all of them, from the first micro-batch or from the start
            done = total
        return done * size.gradient // (mesh.data if parallel.zero >= 2 else 1)

    def moment(name: str, done: int, alive: int, work: int, fresh: int, module: int) -> Moment:
        fresh *= size.weight + (size.gradient if zero3 else 0) if adds else 0  # ZeRO-3 scatters a copy
        gathered = min(total, max(module, sizes.live)) if sizes.prefetch else module
        return Moment(name, gradients(done), alive, work + fresh, gathered * size.weight * zero3)

    done = total - sum(own[kind.prefix].mixer + own[kind.prefix].rest for kind, _ in layers)
    below = ends.embedding + sum(kept)
    yield moment("loss", 0, below + ends.head, ends.loss_work, held["head"], held["head"])
    for index in range(len(layers) - 1, -1, -1):
        (kind, each), name = layers[index], f"backward of layer {index + 1}"
        numbers = own[kind.prefix]
        below -= kept[index]
        ahead = parallel.activations == "block_cpu" and index  # the next comes back from the host meanwhile
        fetched = layers[index - 1][1].entry if ahead else 0
        before = each.entry if parallel.activations == "operator" else each.mixer
        alive = below + fetched + each.entry + before + each.mlp
        yield moment(name, done, alive, each.mlp_work, numbers.rest_module, numbers.rest_module)
        done += numbers.rest
        alive = below + fetched + each.entry + each.mixer
        now = done if adds else done + numbers.mixer
        yield moment(name, now, alive, each.mixer_work, numbers.mixer, numbers.mixer_module)
        done += numbers.mixer
    if parallel.engine == "deepspeed" and parallel.zero == 0:  # gradients are sent as flat copies
        copied = min(total, FLAT_COPY) if mesh.data > 1 else 0
        yield Moment("sending gradients", gradients(total), 0, copied * size.weight, 0)


def _kept(each: LayerBytes, policy: str) -> int:
    if policy == "block_cpu":
        return 0
    if policy == "block":
        return each.entry
    return each.entry + each.mlp + (each.entry if policy == "operator" else each.mixer)


class _LayerNumbers(NamedTuple):
    """Parameters of a layer's mixer and of all else in it, and of the largest module of either."""

    mixer: int
    rest: int
    mixer_module: int
    rest_module: int


def _layer_numbers(net: LayerKinds, mesh: Mesh, kind: LayerKind) -> _LayerNumbers:
    modules: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for piece in net.pieces(mesh):
        if piece.name.startswith(kind.prefix):
            inside = f"{kind.prefix}mixer." in piece.name
            modules[not inside][piece.name.rpartition(".")[0]] += piece.shard.numel
    sums, largest = (sum(m.values()) for m in modules), (max(m.values(), default=0) for m in modules)
    return _LayerNumbers(*sums, *largest)


class _States(NamedTuple):
    weights: int
    gradients: int
    optimizer: int
    update: int  # temporaries of the optimizer step
    buffers: int  # DeepSpeed's gradient buckets


def _states(
    net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, precision: Precision
) -> tuple[_States, int]:
    """Weights, gradients and optimizer states, and the bytes that offloading moves to the host."""
    held, number = sum(net.held(mesh).values()), number_sizes(precision, parallel).weight
    if parallel.zero == 0:
        return _States(held * number, held * number, held * 8, 0, 0), 0
    share, sizes = -(-held // mesh.data), rank_zero_sizes(net, mesh, parallel)
    gradient = gradient_size(precision, parallel)
    weights = (share if parallel.zero == 3 else held) * number
    gradients = (share if parallel.zero >= 2 else held) * gradient
    optimizer = share * 12  # moments and masters
    update = 4 * min(share, sizes.sub_group if parallel.zero == 3 else share)
    # ZeRO 1 and 2 fill one bucket while the other is sent; ZeRO-2 sends a copy in the gradients' dtype.
    bucket = {1: 2 * gradient, 2: 2 * number + gradient * (gradient != number), 3: gradient}[parallel.zero]
    buffers = sizes.bucket * bucket
    if parallel.offload_optimizer:
        return _States(weights, gradients, 0, 0, buffers), optimizer
    return _States(weights, gradients, optimizer, update, buffers), 0
