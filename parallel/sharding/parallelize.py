"""Turns a net into the part of it that one process holds: read `parallelize` to know who holds what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.initial import InitialValue, initial_buffer, initial_values
from models.mixers.interface import Mixer
from models.parts.batch_norm import BatchNorm
from models.parts.block import Block
from models.parts.feed_forward import FeedForward
from models.transformer import GPT
from parallel.mesh import Mesh, ParallelConfig
from parallel.sharding.batch_norm import share_statistics
from parallel.sharding.layout import Shard, shards
from parallel.sharding.offload import HostOffload
from parallel.sharding.offset import shard_offsets
from parallel.sharding.tensor import shard_heads
from parallel.sharding.vocabulary import not_drawn, shard_vocabulary


def parallelize(
    net: nn.Module,
    mesh: Mesh,
    config: ParallelConfig,
    seed: int,
    device: torch.device,
    partition: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Shards a net that was built on the meta device, in place, and draws this rank's weights.

    In order: banks over the offset axis; heads over the tensor axis; feed-forward and vocabulary over
    both; batch norms' statistics over the data axis; activation checkpointing; then weights, module by
    module, each rank its own. `partition(module)`
    is called as soon as a layer, and finally the net, has its weights (ZeRO-3 partitions them there).
    Raises UserError where net and mesh do not fit.
    """
    held, initial, ties = shards(net, mesh), initial_values(net), _tied(net)
    for module in list(net.modules()):
        if isinstance(module, Mixer) and mesh.offset > 1 and "entry" in module.divided_axes():
            shard_offsets(module, mesh)
        if isinstance(module, Mixer) and mesh.tensor > 1 and "head" in module.divided_axes():
            shard_heads(module, mesh)
        if isinstance(module, FeedForward) and mesh.model > 1:
            _shard_feed_forward(module)
        if isinstance(module, GPT) and mesh.model > 1:
            shard_vocabulary(module, mesh, held["embedding.weight"])
        if isinstance(module, BatchNorm) and mesh.data > 1:
            share_statistics(module, mesh)
    _checkpoint_activations(net, config.activations)
    for path, module in _innermost_first(net):
        inside = f"{path}." if path else ""
        for leaf, _ in list(module.named_parameters(recurse=False)):
            name = inside + leaf
            if name in held:  # a tied weight is drawn under its first name
                _draw(module, leaf, held[name], initial[name], mesh, seed, device)
        for leaf, _ in list(module.named_buffers(recurse=False)):
            setattr(module, leaf, initial_buffer(net, inside + leaf).to(device))
        for alias, first in ties.items():
            if alias.startswith(inside) and first.startswith(inside):
                owner, _, leaf = alias.rpartition(".")
                setattr(net.get_submodule(owner), leaf, net.get_parameter(first))
        if partition is not None and (isinstance(module, Block) or module is net):
            partition(module)
    return net


def _shard_feed_forward(mlp: FeedForward) -> None:
    dim, hidden = mlp.up.in_features, mlp.up.out_features
    bias = mlp.up.bias is not None
    mlp.up = ColumnParallelLinear(dim, hidden, bias, gather_output=False, init_method=not_drawn)  # pyright: ignore
    mlp.down = RowParallelLinear(hidden, dim, bias, input_is_parallel=True, init_method=not_drawn)  # pyright: ignore


def _checkpoint_activations(net: nn.Module, policy: str) -> None:
    offload = HostOffload() if policy == "block_cpu" else None
    for layer in [module for module in net.modules() if isinstance(module, Block)]:
        if policy == "operator":
            _recompute(layer.mixer, None)
        elif policy != "none":
            _recompute(layer, offload)


def _recompute(module: nn.Module, offload: HostOffload | None) -> None:
    """Saves a module's inputs only, in host memory with `offload`. (fairscale's checkpoint_wrapper recomputes
    in another dtype than autocast's: float32 on the CPU, float16 on CUDA.)"""
    forward = module.forward

    def run(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        with offload.hooks() if offload else nullcontext():
            return checkpoint(forward, *inputs, use_reentrant=True)  # pyright: ignore[reportReturnType]

    module.forward = run


def _tied(net: nn.Module) -> dict[str, str]:
    """The further names of parameters that have several, and their first."""
    first: dict[nn.Parameter, str] = {}
    names = [(name, first.setdefault(p, name)) for name, p in net.named_parameters(remove_duplicate=False)]
    return {name: own for name, own in names if name != own}


def _innermost_first(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(net.named_modules())[::-1]


def _draw(
    module: nn.Module,
    leaf: str,
    shard: Shard,
    initial: InitialValue,
    mesh: Mesh,
    seed: int,
    device: torch.device,
) -> None:
    weight = shard.take(initial(seed, shard.entries))
    trained = getattr(module, leaf).requires_grad
    parameter = nn.Parameter(weight.to(device).clone(memory_format=torch.contiguous_format), trained)
    # Sums over the model-parallel group, such as DeepSpeed's gradient norm, count the parameters marked
    # here, and every parameter of the group's first rank.
    parameter.model_parallel = shard.sharded() and shard.counted(mesh)  # pyright: ignore
    setattr(module, leaf, parameter)
