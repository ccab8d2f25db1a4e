"""Chooses the walk that visits the pairs: the fastest by count for the card and the shapes.

On the CPU it is the loop. On a card each walk that can run there is counted once per shape on the meta
device (count.py), and the choice is kept; the loop, which does what grouped products do in more launches and
more passes over memory, serves only where no other can. It is counted rather than measured even where there
is a card, so that two runs of one config always take the same kernels and end with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from models.ops.cards import Card, card_at, meta_is, stood_for
from models.ops.count import LaunchCounter, TooSlow
from models.ops.recipe import Kernel, Recipe
from models.ops.walk.interface import Walk
from models.ops.walk.schedule import Schedule

Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]

_WALKS: dict[tuple[Kernel, bool], tuple[str, str]] = {  # (kernel, α-Translution)
    ("fused", False): ("models.ops.fused.walk", "FusedWalk"),
    ("fused", True): ("models.ops.fused.alpha.walk", "AlphaWalk"),
    ("grouped", False): ("models.ops.grouped.walk", "GroupedWalk"),
    ("loop", False): ("models.ops.streamed", "PairWalk"),
    ("loop", True): ("models.ops.streamed", "PairWalk"),
}


def choose_walk(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> type[Walk]:
    """The walk of `recipe.kernel`, or with "auto" the fastest by count for the tensors' device.

    Raises ValueError, with the reason, for a kernel that cannot run.
    """
    alpha = len(recipe.logits) + len(recipe.values) > 2
    card, stand_in = card_at(sources[0].device), stood_for(sources[0].device)
    refused: dict[Kernel, str] = {}
    if recipe.kernel != "auto":
        reason = why_not(recipe.kernel, alpha, recipe, schedule, sources, banks)
        if reason is not None:
            raise ValueError(f"mixer.kernel={recipe.kernel}: {reason}")
        kernel: Kernel = recipe.kernel
    elif card is None:
        kernel = "loop"
    else:
        for name in ("fused", "grouped"):
            reason = why_not(name, alpha, recipe, schedule, sources, banks)
            if reason is not None:
                refused[name] = reason
        able = tuple(name for name in ("fused", "grouped") if name not in refused) or ("loop",)
        kernel = _fastest(able, alpha, recipe, schedule, _shapes(sources), _shapes(banks), card)
    if stand_in is not None:
        stand_in.chosen.append(kernel)
        stand_in.refused.update(refused)
    return _walk(kernel, alpha)


def why_not(
    kernel: Kernel,
    alpha: bool,
    recipe: Recipe,
    schedule: Schedule,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
) -> str | None:
    """The reason why this kernel cannot serve these tensors; None if it can."""
    if (kernel, alpha) not in _WALKS:
        return "it does not know α-Translution"
    try:
        walk = _walk(kernel, alpha)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    reason = getattr(walk, "why_not", None)
    return reason(recipe, schedule, sources, banks) if reason else None


def count_walk(
    kernel: Kernel,
    alpha: bool,
    recipe: Recipe,
    schedule: Schedule,
    sources: Shapes,
    banks: Shapes,
    card: Card,
    limit: float = float("inf"),
) -> LaunchCounter:
    """Counts a forward and a backward pass; raises TooSlow beyond `limit` seconds."""
    walk = _walk(kernel, alpha)
    with _disable_current_modes(), torch.no_grad():
        meta = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in sources]
        meta_banks = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in banks]
        with meta_is(card), LaunchCounter(card, limit) as counter:
            lse, outs, kept = walk.forward(recipe, schedule, meta, meta_banks)
            delta, grads = torch.empty_like(lse), [torch.empty_like(out, dtype=sources[0][1]) for out in outs]
            walk.backward(recipe, schedule, meta, meta_banks, kept, lse, delta, grads)
    return counter


@lru_cache(maxsize=256)
def _fastest(
    able: tuple[Kernel, ...],
    alpha: bool,
    recipe: Recipe,
    schedule: Schedule,
    sources: Shapes,
    banks: Shapes,
    card: Card,
) -> Kernel:
    if len(able) == 1:
        return able[0]
    best, least = able[0], float("inf")
    for kernel in able:
        try:
            counted = count_walk(kernel, alpha, recipe, schedule, sources, banks, card, least)
        except TooSlow:
            continue
        best, least = kernel, counted.seconds
    return best


def _walk(kernel: Kernel, alpha: bool) -> type[Walk]:
    """Imported here, so that triton is loaded only where its kernels are considered."""
    module, name = _WALKS[kernel, alpha]
    return cast("type[Walk]", getattr(import_module(module), name))


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
