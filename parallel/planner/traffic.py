"""What one training step sends, predicted from the net, as payload bytes (see parallel/traffic_counter.py).

It covers every collective of parallel/sharding, fairscale's layers and the engines. Forward through a
layer sends partial softmaxes and the partial sums over heads and feed-forward; backward sends the
gradients of their inputs. Checkpointed layers run forward twice. Under ZeRO-3 it is an upper bound: what has
been gathered ahead when forward turns into backward, less than two layers, is not gathered again.
"""

from __future__ import annotations

from models.mixers.cost import Cost, Load, Sizes
from models.mixers.interface import Mixer
from models.parts.batch_norm import BatchNorm
from models.transformer import GPTConfig
from parallel.engine.deepspeed_settings import ZeroSizes, zero_sizes
from parallel.engine.interface import VOTES, Precision
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.layers import LayerKind, LayerKinds, Piece, mixer_load
from parallel.traffic_counter import Traffic


def number_sizes(precision: Precision, parallel: ParallelConfig) -> Sizes:
    """As autocast has it on CUDA (torch engine), or with weights in bfloat16 (DeepSpeed)."""
    if precision == "fp32":
        return Sizes(4, 4, 4)
    return Sizes(4, 2, 4) if parallel.engine == "torch" else Sizes(2, 2, 2)


def gradient_size(precision: Precision, parallel: ParallelConfig) -> int:
    """Bytes of a number of a gradient as it is summed over replicas and kept."""
    return 2 if precision == "bf16" and parallel.gradients == "bf16" else 4


def rank_zero_sizes(net: LayerKinds, mesh: Mesh, parallel: ParallelConfig) -> ZeroSizes:
    """The engine's sizes of buckets on this rank."""
    pieces = net.pieces(mesh)
    layers = (sum(p.shard.numel for p in _of(kind, pieces)) for kind in net.kinds)
    return zero_sizes(parallel, sum(p.shard.numel * p.repeats for p in pieces), max(layers))


def step_traffic(
    net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, batch: int, accumulate: int, precision: Precision
) -> Traffic:
    """Payloads of one optimizer step of this rank; `batch` is the global batch."""
    samples = batch // (accumulate * mesh.data)
    activations = micro_batch_traffic(net, mesh, parallel, samples, precision)
    return activations.times(accumulate) + _state_traffic(net, mesh, parallel, accumulate, precision)


def micro_batch_traffic(
    net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, samples: int, precision: Precision
) -> Traffic:
    """Payloads of the model-parallel axes for one micro-batch of `samples` per data rank."""
    size, width = number_sizes(precision, parallel), net.config.width
    total = Traffic()
    for kind in net.kinds:
        cost = net.cost(kind.mixer, mixer_load(kind.mixer, mesh, Load(samples, size)))
        mixer = _mixer_forward(kind, cost, mesh, samples, size)
        mlp = Traffic()
        if mesh.model > 1:
            mlp.add("model", "all_reduce", samples * kind.layer.mlp_tokens * width * size.product)
        layer = mixer + mlp
        if parallel.activations == "operator":
            layer += mixer
        elif parallel.activations != "none":
            layer += mixer + mlp
        layer += _backward(net, kind, cost, mesh, samples, size)
        total += layer.times(kind.repeats)
    if isinstance(net.config, GPTConfig) and mesh.model > 1:
        tokens = samples * net.tokens_out
        total.add("model", "all_reduce", tokens * width * size.weight)  # embedding, forward
        total.add("model", "all_reduce", tokens * width * size.residual)  # head, backward
        total.add("model", "all_reduce", 3 * tokens * 4)  # maxima, target logits, sums
    return total


def _mixer_forward(kind: LayerKind, cost: Cost | None, mesh: Mesh, samples: int, size: Sizes) -> Traffic:
    traffic, divided = Traffic(), kind.mixer.divided_axes()
    if "entry" in divided and mesh.offset > 1 and cost:
        traffic.add("offset", "all_reduce", cost.partials + cost.importance[0])
    if "head" in divided and mesh.tensor > 1:
        for outputs, _ in _head_sums(kind.mixer):
            traffic.add("tensor", "all_reduce", samples * outputs * size.product)
        traffic.add("tensor", "all_reduce", 2 * samples * kind.mixer.softmax_tokens * 4)  # maxima, sums
        ranked = kind.tokens if kind.mixer.importance else 0
        traffic.add("tensor", "all_reduce", samples * ranked * size.statistics)  # the mean over heads
    return traffic


def _head_sums(mixer: Mixer) -> list[tuple[int, bool]]:
    """Of each linear layer whose inputs are heads: a sample's outputs, and whether these are heads again."""
    axes = mixer.axes().items()
    return [
        (
            mixer.tokens_out(name.removesuffix(".weight")) * mixer.get_parameter(name).shape[0],
            dims.get(0) == "head",
        )
        for name, dims in axes
        if dims.get(1) == "head"
    ]


def _backward(
    net: LayerKinds, kind: LayerKind, cost: Cost | None, mesh: Mesh, samples: int, size: Sizes
) -> Traffic:
    traffic, divided = Traffic(), kind.mixer.divided_axes()
    if mesh.model > 1:  # into the feed-forward
        numbers = samples * kind.layer.mlp_tokens * net.config.width
        traffic.add("model", "all_reduce", numbers * size.residual)
    if "head" in divided and mesh.tensor > 1:
        traffic.add("tensor", "all_reduce", cost.head_gradients if cost else 0)
        for outputs, heads_again in _head_sums(kind.mixer):
            traffic.add("tensor", "all_gather", heads_again * samples * outputs * size.product)
        traffic.add("tensor", "all_reduce", samples * kind.mixer.softmax_tokens * 4)
    if "entry" in divided and mesh.offset > 1:
        traffic.add("offset", "all_reduce", sum(cost.source_gradients) + cost.importance[1] if cost else 0)
        pieces = [p for p in net.pieces(mesh) if p.name.startswith(kind.prefix) and p.part == "banks"]
        whole = sum(p.shard.numel for p in pieces if p.shard.entries is None)  # on every offset rank
        traffic.add("offset", "all_reduce", whole * size.weight)
    return traffic


def _state_traffic(
    net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, accumulate: int, precision: Precision
) -> Traffic:
    """Gradients, weights and scalars: what does not grow with the batch."""
    traffic = Traffic()
    votes = 4 * VOTES  # of the ranks, beside the loss and the norm
    over_world = parallel.engine == "deepspeed" and parallel.zero > 0 and mesh.model > 1
    if over_world:
        traffic.add("world" if mesh.data > 1 else "model", "all_reduce", 4 + votes)
    elif mesh.model > 1:
        traffic.add("model", "all_reduce", votes)
    if mesh.data > 1:
        if not over_world:
            traffic.add("data", "all_reduce", 4 + votes)  # the loss
        traffic.add("data", "all_reduce", accumulate * _statistics_bytes(net, parallel))
        _gradients_and_weights(traffic, net, mesh, parallel, accumulate, precision)
    for axis in ("data", "model"):
        if getattr(mesh, axis) > 1:
            traffic.add(axis, "all_reduce", _norm_bytes(axis, net, mesh, parallel, precision))
    return traffic


def _gradients_and_weights(
    traffic: Traffic,
    net: LayerKinds,
    mesh: Mesh,
    parallel: ParallelConfig,
    accumulate: int,
    precision: Precision,
) -> None:
    """Over the data axis: gradients once a step (ZeRO 2, 3: once a micro-batch);
    updated weights once a step (ZeRO 1, 2), or before every use (ZeRO 3)."""
    pieces = [(piece.shard.numel, piece.repeats) for piece in net.pieces(mesh)]
    weight, gradient = number_sizes(precision, parallel).weight, gradient_size(precision, parallel)
    held = sum(numel * count for numel, count in pieces) * gradient
    if parallel.zero < 3:
        traffic.add("data", "all_reduce", held * (accumulate if parallel.zero == 2 else 1))
        if parallel.zero:
            traffic.add("data", "all_gather", _flat(net, mesh) * weight)
        return
    padded = sum(-(-numel // mesh.data) * mesh.data * count for numel, count in pieces)
    traffic.add("data", "reduce_scatter", padded * gradient * accumulate)
    traffic.add("data", "all_gather", 2 * padded * weight * accumulate)
    if parallel.activations != "none":  # and before recomputation
        again = [p for p in net.pieces(mesh) if p.name.startswith("layers.")]
        if parallel.activations == "operator":  # banks are gathered around the mixer, not inside it
            again = [p for p in again if ".mixer." in p.name and p.part != "banks"]
        padded = sum(-(-p.shard.numel // mesh.data) * mesh.data * p.repeats for p in again) * weight
        traffic.add("data", "all_gather", padded * accumulate)


def _statistics_bytes(net: LayerKinds, parallel: ParallelConfig) -> int:
    """Of batch norms in one micro-batch: mean and variance, forward and backward, again if recomputed."""
    total = 0
    for path, norm in net.net.named_modules():
        if isinstance(norm, BatchNorm):
            repeats = [kind.repeats for kind in net.kinds if path.startswith(kind.prefix)]
            again = bool(repeats) and parallel.activations in ("block", "block_cpu")
            total += (6 if again else 4) * norm.weight.numel() * 4 * (repeats[0] if repeats else 1)
    return total


def _flat(net: LayerKinds, mesh: Mesh) -> int:
    """Numbers in DeepSpeed's flat buffers of ZeRO 1 and 2: one for each group of the optimizer, padded
    to twice the data ranks."""
    sizes = {True: 0, False: 0}
    for piece in net.pieces(mesh):
        sizes[_decays(net, piece)] += piece.shard.numel * piece.repeats
    step = 2 * mesh.data
    return sum(-(-size // step) * step for size in sizes.values())


def _decays(net: LayerKinds, piece: Piece) -> bool:
    """Which of the optimizer's groups it is in (parallel/engine/optimizer.py)."""
    return len(piece.shard.full) > 1 and piece.name not in net.no_decay


def _norm_bytes(
    axis: str, net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, precision: Precision
) -> int:
    """Scalars of the gradient norm, and of DeepSpeed's looks for numbers that are not finite."""
    if parallel.engine == "torch":
        return 4 if axis == "model" else 0
    if parallel.zero == 0:
        return 8 if axis == "model" else 4
    if parallel.zero == 3:
        return 8 * _sub_groups(net, mesh, rank_zero_sizes(net, mesh, parallel).sub_group)
    return 9 if precision == "bf16" else 8


def _sub_groups(net: LayerKinds, mesh: Mesh, size: int) -> int:
    """How many runs of parameters DeepSpeed updates one after another under ZeRO-3: either group of the
    optimizer is cut after each parameter by which a run has reached `size`."""
    pieces = net.pieces(mesh)
    within = [p.name.startswith("layers.") for p in pieces]
    before, after = pieces[: within.index(True)], pieces[len(within) - within[::-1].index(True) :]
    ordered = [*before, *(piece for kind in net.order for piece in _of(kind, pieces)), *after]
    runs = {True: [0], False: [0]}
    for piece in ordered:
        run = runs[_decays(net, piece)]
        if run[-1] >= size:
            run.append(0)
        run[-1] += -(-piece.shard.numel // mesh.data)
    return sum(len([numel for numel in run if numel]) for run in runs.values())


def _of(kind: LayerKind, pieces: list[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.name.startswith(kind.prefix)]
