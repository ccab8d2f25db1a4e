"""One function that turns a net into the part of it that one process holds: read it to know who holds
what (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.gpt import GPT
from models.initial import Draw, draws
from models.mixers.attention import Attention
from models.mixers.translution import Translution
from models.transformer import FeedForward, Layer
from parallel.mesh import Mesh, ParallelConfig
from parallel.sharding.layout import Shard, shards
from parallel.sharding.offset import shard_offsets
from parallel.sharding.tensor import shard_heads
from parallel.sharding.vocabulary import leave, shard_vocabulary


def parallelize(
    net: nn.Module,
    mesh: Mesh,
    config: ParallelConfig,
    seed: int,
    device: torch.device,
    own: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Shards a net that was built on the meta device, in place, and draws this rank's weights.

    In order: banks over the offset axis; heads over the tensor axis; feed-forward and vocabulary over
    both; activation checkpointing; then weights, module by module, each rank its own. `own(module)` is
    called when the weights of a layer, and at last of the net, are there (ZeRO-3 takes its share of
    them at once). Raises UserError where net and mesh do not fit.
    """
    held, begin = shards(net, mesh), draws(net)
    for module in list(net.modules()):
        if isinstance(module, Translution) and mesh.offset > 1:
            shard_offsets(module, mesh)
        if isinstance(module, Translution | Attention) and mesh.tensor > 1:
            shard_heads(module, mesh)
        if isinstance(module, FeedForward) and mesh.model > 1:
            _shard_feed_forward(module)
        if isinstance(module, GPT) and mesh.model > 1:
            shard_vocabulary(module, mesh, held["embedding.weight"])
    _checkpoint_activations(net, config.activations)
    for path, module in _innermost_first(net):
        for leaf, _ in list(module.named_parameters(recurse=False)):
            name = f"{path}.{leaf}" if path else leaf
            if name in held:  # a tied weight comes under its first name
                _draw(module, leaf, held[name], begin[name], mesh, seed, device)
        if isinstance(module, GPT) and module.config.tie_embeddings:
            module.head.weight = module.embedding.weight
        if own is not None and (isinstance(module, Layer) or module is net):
            own(module)
    return net


def _shard_feed_forward(mlp: FeedForward) -> None:
    dim, hidden = mlp.up.in_features, mlp.up.out_features
    mlp.up = ColumnParallelLinear(dim, hidden, gather_output=False, init_method=leave)  # pyright: ignore
    mlp.down = RowParallelLinear(hidden, dim, input_is_parallel=True, init_method=leave)  # pyright: ignore


def _checkpoint_activations(net: nn.Module, policy: str) -> None:
    for layer in [module for module in net.modules() if isinstance(module, Layer)]:
        if policy == "operator":
            _recompute(layer.mixer, offload=False)
        elif policy != "none":
            _recompute(layer, offload=policy == "block_cpu")


def _recompute(module: nn.Module, offload: bool) -> None:
    """Saves a module's input only, in host memory if `offload`. (fairscale's checkpoint_wrapper recomputes
    in another dtype than autocast's: float32 on the CPU, float16 on CUDA.)"""
    forward = module.forward

    def run(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu() if offload else nullcontext():
            return checkpoint(forward, x, use_reentrant=True)

    module.forward = run


def _innermost_first(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(net.named_modules())[::-1]


def _draw(
    module: nn.Module, leaf: str, shard: Shard, draw: Draw, mesh: Mesh, seed: int, device: torch.device
) -> None:
    weight = shard.take(draw(seed, shard.entries))
    parameter = nn.Parameter(weight.to(device).clone(memory_format=torch.contiguous_format))
    # Sums over the model-parallel group, such as DeepSpeed's gradient norm, count what is marked here
    # and everything of its first rank.
    parameter.model_parallel = shard.sharded() and shard.counted(mesh)  # pyright: ignore
    setattr(module, leaf, parameter)
