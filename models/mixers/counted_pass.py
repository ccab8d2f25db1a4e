"""A mixer's forward and backward pass on a card, counted on the meta device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from models.mixers.measured_cost import FusedAttention, LiveBytes, part_of
from models.ops.cards import Card, meta_is
from models.ops.count import LaunchCounter
from models.ops.recipe import Kernel


class CountedPass(NamedTuple):
    """forward, backward   the launches of either
    kernels             which kernels visited the pairs; empty for a mixer that visits none
    refused             those that cannot serve, and why
    extra_bytes         most bytes allocated at once, beside input, output, parameters and gradients
    saved_bytes         of them, those that forward leaves for backward
    work_bytes          most bytes that backward allocates at once beside those and parameters' gradients
    """

    forward: LaunchCounter
    backward: LaunchCounter
    kernels: tuple[Kernel, ...]
    refused: dict[Kernel, str]
    extra_bytes: int
    saved_bytes: int
    work_bytes: int

    @property
    def seconds(self) -> float:
        return self.forward.seconds + self.backward.seconds


def count_pass(
    mixer: nn.Module,
    samples: int,
    card: Card,
    head_parts: int = 1,
    pair_parts: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> CountedPass:
    """Counts one part of the heads and of the pairs of `samples` samples.

    `mixer`, with its `dim` and `num_tokens`, is on the meta device. Banks stay float32, as an optimizer
    holds them; everything else is in `dtype`.
    """
    part = cast_dense(part_of(mixer, head_parts, pair_parts), dtype)
    x = torch.empty((samples, part.num_tokens, part.dim), dtype=dtype, device="meta", requires_grad=True)
    live = LiveBytes()
    with meta_is(card) as choice:
        with LaunchCounter(card) as forward, live, FusedAttention():
            y = part(x)
        outputs, done = y if isinstance(y, tuple) else (y,), live.now
        grad_outputs = [torch.empty_like(out) for out in outputs]
        with LaunchCounter(card) as backward, live:
            _, *gradients = torch.autograd.grad(outputs, [x, *part.parameters()], grad_outputs)
    held = [x, *outputs, *part.parameters()]
    return CountedPass(
        forward,
        backward,
        tuple(choice.chosen),
        choice.refused,
        live.peak([*held, *gradients]),
        live.alive(held, done),
        live.peak_after([*held, *gradients], done),
    )


def cast_dense(part: Any, dtype: torch.dtype) -> Any:
    """The mixer, with all parameters but its banks in `dtype`."""
    banks = {name for name, dims in part.axes().items() if "entry" in dims.values()}
    for name, parameter in part.named_parameters():
        if name not in banks:
            path, _, leaf = name.rpartition(".")
            setattr(part.get_submodule(path), leaf, nn.Parameter(parameter.detach().to(dtype)))
    return part
