"""Chooses the walk that visits the pairs: the fastest by count for the card and the shapes.

On the CPU it is the loop, in one of two forms. On a card each walk that can run there is counted once per
shape on the meta device (count.py), and the choice is kept; the loop, which does what the kernels do in many
more launches and passes over memory, serves only where no other can. Pairs in bands are visited so, or offset
by offset if that is faster. It is counted rather than measured even where there is a card, so that two runs
of one config always take the same kernels and end with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from models.ops.cards import Card, card_at, meta_is, stood_for
from models.ops.count import LaunchCounter, TooSlow
from models.ops.dense.parts import has_dense_part
from models.ops.recipe import Kernel, Recipe
from models.ops.walk.interface import Walk
from models.ops.walk.schedule import Schedule

Form = Literal["full", "alpha", "dense", "bands"]
_WALKS: dict[tuple[Kernel, Form], tuple[str, str]] = {
    ("fused", "full"): ("models.ops.fused.walk", "FusedWalk"),
    ("fused", "alpha"): ("models.ops.fused.alpha.walk", "AlphaWalk"),
    ("fused", "bands"): ("models.ops.fused.bands.walk", "BandWalk"),
    ("grouped", "full"): ("models.ops.grouped.walk", "GroupedWalk"),
    ("loop", "full"): ("models.ops.streamed", "PairWalk"),
    ("loop", "dense"): ("models.ops.dense.walk", "DenseWalk"),  # any recipe with a dense part
}


def choose_walk(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> Walk:
    """The walk of `recipe.kernel`, or with "auto" the fastest by count for the tensors' device.

    Raises ValueError, with the reason, for a kernel that cannot run.
    """
    device, stand_in = sources[0].device, stood_for(sources[0].device)
    key = (recipe, schedule, device, stand_in and stand_in.card, _shapes(sources), _shapes(banks))
    choice = _choices.get(key)
    if choice is None:
        if len(_choices) >= MOST_CHOICES:
            _choices.clear()
        choice = _choices[key] = _choose(recipe, schedule, sources, banks)
    if stand_in is not None:
        stand_in.chosen.append(choice.kernel)
        stand_in.refused.update(choice.refused)
    return choice.walk


class _Choice(NamedTuple):
    kernel: Kernel
    walk: Walk
    refused: dict[Kernel, str]


MOST_CHOICES = 256
_choices: dict[tuple[object, ...], _Choice] = {}


def _choose(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> _Choice:
    refused: dict[Kernel, str] = {}
    card, wanted = card_at(sources[0].device), recipe.kernel
    able: list[_Choice] = []
    tried: tuple[Kernel, ...] = ("fused", "grouped") if wanted == "auto" else (wanted,)
    if wanted == "loop" or (wanted == "auto" and card is None):
        tried = ()
    for name in tried:
        walks, reason = _able(name, recipe, schedule, sources, banks)
        able += [_Choice(name, walk, refused) for walk in walks]
        if not walks:
            refused[name] = reason
    if not able and wanted in refused:
        raise ValueError(f"mixer.kernel={wanted}: {refused[wanted]}")
    if not able:
        return _Choice("loop", _loop(recipe, schedule), refused)
    if len(able) == 1 or card is None:
        return able[0]
    best, least = able[0], float("inf")
    for choice in able:
        if least_seconds(choice.walk, schedule, sources, banks, card) > least:
            continue
        try:
            counted = count_walk(choice.walk, recipe, schedule, sources, banks, card, least)
        except TooSlow:
            continue
        best, least = choice, counted.seconds
    return best


def least_seconds(
    walk: Walk, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor], card: Card
) -> float:
    """What no walk of single offsets falls below: every pair's products, forward and twice backward."""
    if not isinstance(walk, ByOffset):
        return 0.0
    products = sum(bank.shape[1] * bank.shape[2] for bank in banks)
    return 3 * 2 * schedule.pairs * sources[0].shape[1] * products / card.rate


def why_not(
    kernel: Kernel, recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> str | None:
    """The reason why this kernel cannot serve these tensors; None if it can."""
    if kernel == "loop":
        return None
    walks, reason = _able(kernel, recipe, schedule, sources, banks)
    return None if walks else reason


def _able(
    kernel: Kernel, recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> tuple[list[Walk], str]:
    """The walks of a kernel that can serve these tensors, and why another cannot."""
    alpha, in_bands = len(recipe.logits) + len(recipe.values) > 2, schedule.in_bands
    form: Form = "alpha" if alpha else "full"
    forms: list[Form] = ["bands", form] if in_bands and not alpha else [form]
    able: list[Walk] = []
    said = "it does not know α-Translution"
    for form in forms:
        if (kernel, form) not in _WALKS:
            continue
        try:
            walk = _walk(kernel, form)
        except ModuleNotFoundError as error:
            said = f"{error.name} is not installed"
            continue
        walk = ByOffset(walk) if in_bands and form != "bands" else walk
        check = getattr(walk, "why_not", None)
        reason = check(recipe, schedule, sources, banks) if check else None
        if reason is None:
            able.append(walk)
        else:
            said = reason
    return able, said


@dataclass(frozen=True)
class ByOffset:
    """A walk that knows no bands, over the single offsets of a schedule in bands."""

    walk: Walk

    def why_not(
        self, recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> str | None:
        if schedule.pairs > MOST_PAIRS:
            return f"tables of more than {MOST_PAIRS:,} pairs would be needed to visit {schedule.pairs:,}"
        check = getattr(self.walk, "why_not", None)
        return check(recipe, schedule.by_offset, sources, banks) if check else None

    def forward(
        self, recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return self.walk.forward(recipe, schedule.by_offset, sources, banks)

    def backward(
        self,
        recipe: Recipe,
        schedule: Schedule,
        sources: Sequence[Tensor],
        banks: Sequence[Tensor],
        kept: Sequence[Tensor],
        lse: Tensor,
        delta: Tensor,
        grads: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.walk.backward(recipe, schedule.by_offset, sources, banks, kept, lse, delta, grads)


MOST_PAIRS = 1 << 24  # of single offsets, where bands would do: their tables are on the card


def _loop(recipe: Recipe, schedule: Schedule) -> Walk:
    return _walk("loop", "dense" if has_dense_part(recipe) and not schedule.in_bands else "full")


def count_walk(
    walk: Walk,
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


def _walk(kernel: Kernel, form: Form) -> Walk:
    """Imported here, so that triton is loaded only where its kernels are considered."""
    module, name = _WALKS[kernel, form]
    return cast("Walk", getattr(import_module(module), name))


def _shapes(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
