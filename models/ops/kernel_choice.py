"""Chooses the walk that visits the pairs: the fastest by count for the card and the shapes.

On the CPU it is the loop, in one of two forms. On a card each walk that can run there is counted once per
shape on the meta device (count.py), and the choice is kept; the loop, which does what grouped products do in
more launches and more passes over memory, serves only where no other can. It is counted rather than measured
even where there is a card, so that two runs of one config always take the same kernels and end with the same
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from models.ops.cards import Card, card_at, meta_is, stood_for
from models.ops.count import LaunchCounter, TooSlow
from models.ops.dense.parts import has_dense_part
from models.ops.recipe import Kernel, Recipe
from models.ops.walk.interface import Walk
from models.ops.walk.schedule import Schedule

_WALKS: dict[tuple[Kernel, bool], tuple[str, str]] = {  # (kernel, whether it is α; loop: has dense parts)
    ("fused", False): ("models.ops.fused.walk", "FusedWalk"),
    ("fused", True): ("models.ops.fused.alpha.walk", "AlphaWalk"),
    ("grouped", False): ("models.ops.grouped.walk", "GroupedWalk"),
    ("loop", False): ("models.ops.streamed", "PairWalk"),
    ("loop", True): ("models.ops.dense.walk", "DenseWalk"),
}


def choose_walk(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> type[Walk]:
    """The walk of `recipe.kernel`, or with "auto" the fastest by count for the tensors' device.

    Raises ValueError, with the reason, for a kernel that cannot run.
    """
    device, stand_in = sources[0].device, stood_for(sources[0].device)
    alpha = len(recipe.logits) + len(recipe.values) > 2
    key = (recipe, schedule, device, stand_in and stand_in.card, _shapes(sources), _shapes(banks))
    choice = _choices.get(key)
    if choice is None:
        if len(_choices) >= MOST_CHOICES:
            _choices.clear()
        choice = _choices[key] = _choose(alpha, recipe, schedule, sources, banks)
    if stand_in is not None:
        stand_in.chosen.append(choice.kernel)
        stand_in.refused.update(choice.refused)
    if choice.kernel == "loop":
        return _walk("loop", has_dense_part(recipe) and not schedule.in_bands)
    return _walk(choice.kernel, alpha)


class _Choice(NamedTuple):
    kernel: Kernel
    refused: dict[Kernel, str]


MOST_CHOICES = 256
_choices: dict[tuple[object, ...], _Choice] = {}


def _choose(
    alpha: bool, recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> _Choice:
    refused: dict[Kernel, str] = {}
    if recipe.kernel != "auto":
        reason = why_not(recipe.kernel, alpha, recipe, schedule, sources, banks)
        if reason is not None:
            raise ValueError(f"mixer.kernel={recipe.kernel}: {reason}")
        return _Choice(recipe.kernel, refused)
    card = card_at(sources[0].device)
    if card is None:
        return _Choice("loop", refused)
    for name in ("fused", "grouped"):
        reason = why_not(name, alpha, recipe, schedule, sources, banks)
        if reason is not None:
            refused[name] = reason
    able: list[Kernel] = [name for name in ("fused", "grouped") if name not in refused]
    if len(able) < 2:
        return _Choice((able or ["loop"])[0], refused)
    best, least = able[0], float("inf")
    for name in able:
        try:
            counted = count_walk(_walk(name, alpha), recipe, schedule, sources, banks, card, least)
        except TooSlow:
            continue
        best, least = name, counted.seconds
    return _Choice(best, refused)


def why_not(
    kernel: Kernel,
    alpha: bool,
    recipe: Recipe,
    schedule: Schedule,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
) -> str | None:
    """The reason why this kernel cannot serve these tensors; None if it can."""
    if kernel != "loop" and schedule.in_bands:
        return "shared entries are visited in bands, which only the loop does"
    if (kernel, alpha) not in _WALKS:
        return "it does not know α-Translution"
    try:
        walk = _walk(kernel, alpha)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    reason = getattr(walk, "why_not", None)
    return reason(recipe, schedule, sources, banks) if reason else None


def count_walk(
    walk: type[Walk],
    recipe: Recipe,
    schedule: Schedule,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
    card: Card,
    limit: float = float("inf"),
) -> LaunchCounter:
    """Counts a forward and a backward pass over tensors like these; raises TooSlow beyond `limit` seconds."""
    with _disable_current_modes(), torch.no_grad():
        like, like_banks = ([torch.empty_like(t, device="meta") for t in ts] for ts in (sources, banks))
        with meta_is(card), LaunchCounter(card, limit) as counter:
            lse, outs, kept = walk.forward(recipe, schedule, like, like_banks)
            delta, grads = torch.empty_like(lse), [out.to(like[0].dtype) for out in outs]
            walk.backward(recipe, schedule, like, like_banks, kept, lse, delta, grads)
    return counter


def _walk(kernel: Kernel, alpha: bool) -> type[Walk]:
    """Imported here, so that triton is loaded only where its kernels are considered."""
    module, name = _WALKS[kernel, alpha]
    return cast("type[Walk]", getattr(import_module(module), name))


def _shapes(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
