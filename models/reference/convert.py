"""Reads and writes the weights of the public code of arXiv 2510.10060.

table.py maps its parameters to ours, shapes.py tells from a state dict which net it holds. Two of its
properties are not kept: attention in its hybrid language nets sees the future, ours does not; and image
nets that pool by the mean are read as pooling by the class token, since the weights do not tell.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.mixers.translution import Translution
from models.reference import shapes
from models.reference.shapes import State
from models.reference.table import BUFFERS, Origin, PreNorm, buffers, check_writable, rows
from models.tokens import TokenGrid
from models.transformer import GPT, ViT, build_model

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def load_reference_layer(
    name: str,
    state: State,
    grid: tuple[int, ...],
    *,
    heads: int | None = None,
    head_dim: int | None = None,
) -> PreNorm:
    """The layer `name` of the public code with these weights, mapping x[B, N, C] → [B, N, C].

    name   vit/NAME or gpt/NAME; NAME is one of qkv kv qk qv q k v, or lor_ and one of these, or
           (vit only) rope_v, lor_rope_v
    grid   (rows, columns) of an image, whose class token is token 0; (tokens,) of a causal sequence
    heads, head_dim   where they cannot be told from the weights (see `shapes.head_shape`)

    There is a pre-norm and an output projection and no residual. Raises ValueError for an unknown
    name, and for weights that are not of this layer, grid or head width.
    """
    causal = name.startswith("gpt")
    shapes.layer_options(name)
    shapes.check_grid(name, state, tuple(grid), causal)
    config, position = shapes.mixer_config(name, state, heads, head_dim)
    with torch.device("meta"):
        width, tokens = len(state["norm.weight"]), TokenGrid(tuple(grid), causal, class_token=not causal)
        layer = PreNorm(width, config.build(width, tokens, position))
    _drop_missing_projection(layer, state)
    return _filled(layer, state, Origin(fused=_fused(state)))


def load_reference_network(
    state: State,
    *,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
    head_dim: int | None = None,
) -> ViT | GPT:
    """The net of the public code that has this state dict: models of images and of text, with
    Translution layers, attention, or first the one and then the other.

    grid   (rows, columns) of an image's patches; by default the square that the weights fit
    heads, head_dim   as for `load_reference_layer`

    Keys may begin with "module.", as those of a net wrapped for data parallelism do. Raises ValueError for
    any other state, and for a grid that the weights do not fit.
    """
    wrapped = all(key.startswith("module.") for key in state)  # saved from (Distributed)DataParallel
    prefix = "module." if wrapped else ""
    state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    body = "transformer" if "transformer.norm.weight" in state else "translution"
    layers = _layers(state, body)
    if "wte.weight" in state:
        config = shapes.gpt_config(state, layers, heads, head_dim)
    else:
        config = shapes.vit_config(state, layers, heads, head_dim, grid)
    with torch.device("meta"):
        net = build_model(config)
        if isinstance(net, GPT):
            net.add_module("norm", nn.Sequential(net.norm, nn.LayerNorm(net.config.width)))
    for layer, layer_state in zip(net.layers, layers, strict=True):
        _drop_missing_projection(layer, layer_state)
    return _filled(net, state, Origin(prefix, body, all(_fused(layer) for layer in layers)))


def to_reference_state(module: nn.Module, tensors: dict[str, Tensor] | None = None) -> State:
    """A layer or net as the public code's state dict; one that was read from it comes back unchanged.

    With `tensors`, names of the module's parameters → tensors of their shapes (gradients, moments),
    these are converted instead, and masks and RoPE tables left out. Raises ValueError for a module
    that the public code has no counterpart of. A language net's one final norm is written as the
    second of two, which leaves the logits equal up to the norms' eps.
    """
    origin = module.__dict__.get("reference_origin")
    constants = {}
    if origin is None:
        check_writable(module)
        translution = any(isinstance(part, Translution) for part in module.modules())
        origin = Origin(body="translution" if translution else "transformer")
        constants = dict(buffers(module, origin.body)) if tensors is None else {}
    elif tensors is None:
        constants = origin.buffers
    if tensors is None:
        tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    state = {row.key: row.join([tensors[name] for name in row.names]) for row in rows(module, origin)}
    return {origin.prefix + key: tensor for key, tensor in {**state, **constants}.items()}


def _layers(state: State, body: str) -> list[State]:
    """The mixers' states of a net, their prefixes removed."""
    layers: dict[int, State] = {}
    for key, tensor in state.items():
        if match := re.fullmatch(rf"{body}\.layers\.(\d+)\.0\.(.+)", key):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if not layers or sorted(layers) != list(range(len(layers))):
        raise ValueError(
            f"no state dict of the reference code: layers {sorted(layers)} in {list(state)[:8]} …"
        )
    return [layers[index] for index in range(len(layers))]


def _fused(layer: State) -> bool:
    return sum(f"to_{letter}.weight" in layer for letter in "qkv") < 2


def _drop_missing_projection(layer: nn.Module, state: State) -> None:
    if "to_out.0.weight" not in state:
        layer.get_submodule("mixer").add_module("out", nn.Identity())


def _filled(module: ModuleT, state: State, origin: Origin) -> ModuleT:
    """Gives a module without memory the weights; raises ValueError for keys or shapes that differ."""
    table = {row.key: row for row in rows(module, origin)}
    constants = {key: tensor.clone() for key, tensor in state.items() if key.split(".")[-1] in BUFFERS}
    missing, unknown = table.keys() - state.keys(), state.keys() - table.keys() - constants.keys()
    if missing or unknown:
        raise ValueError(f"reference weights: missing {sorted(missing)}, unknown {sorted(unknown)}")
    empty, ours = dict(module.named_parameters()), {}
    for key, row in table.items():
        theirs, needed = state[key].detach(), row.join([empty[name] for name in row.names]).shape
        if theirs.shape != needed:
            raise ValueError(f"reference weights: {key} is {tuple(theirs.shape)}, {tuple(needed)} fits")
        ours.update(zip(row.names, (part.clone() for part in row.split(theirs)), strict=True))
    module.load_state_dict(ours, assign=True)
    module.__dict__["reference_origin"] = replace(origin, buffers=constants)
    return module
