"""Walks over the pairs are rehearsed once: with the same arguments they do the same in every layer,
micro-batch and step, and, where a batch is cut to fit the workspace, with each cut.

A walk in torch's operators makes tens of thousands of calls (entries that are shared, in bands), and a step
hundreds of walks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from models.ops import streamed
from models.ops.recipe import Recipe
from models.ops.walk.chunks import Chunk
from models.ops.walk.interface import Walk
from parallel.rehearsal.memory import Span
from parallel.rehearsal.recorder import Recorder, Work


class _Done(NamedTuple):
    """What a pass of a walk did: what it allocated and computed, and the form of its results."""

    span: Span
    work: Work
    shapes: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    structure: TreeSpec


@contextmanager
def repeated_walks(recorder: Recorder) -> Iterator[None]:
    """While the context lasts, a walk with arguments like those of an earlier one is not made again: its
    results appear, and the record has what the earlier one did."""
    known: dict[tuple[Any, ...], _Done | None] = {}  # None: what it did cannot be repeated
    choose = streamed.choose_walk

    def choose_repeated(*arguments: Any) -> Any:
        return _RepeatedWalk(choose(*arguments), known, recorder)

    with (
        mock.patch.object(streamed, "choose_walk", choose_repeated),
        mock.patch.object(streamed, "steps", _without_repeats(recorder)),
    ):
        yield


def _without_repeats(recorder: Recorder) -> Callable[..., Iterator[tuple[slice, Sequence[Chunk]]]]:
    """In place of `steps`: leaves out samples like those before, and counts their work. The second of equal
    parts allocates over what the first has left, and so does each further one: none has a higher peak."""
    all_steps = streamed.steps

    def steps(recipe: Recipe, *arguments: Any) -> Iterator[tuple[slice, Sequence[Chunk]]]:
        made: Counter[int] = Counter()
        work: dict[int, Work] = {}
        for samples, chunks in all_steps(recipe, *arguments):
            size = samples.stop - samples.start
            if made[size] >= 2 and not recipe.keep:
                recorder.add(work[size])
                continue
            before = recorder.work()
            yield samples, chunks
            work[size] = recorder.work().minus(before)
            made[size] += 1

    return steps


class _RepeatedWalk:
    """A walk whose passes are looked up before they are made."""

    def __init__(
        self, walk: type[Walk], known: dict[tuple[Any, ...], _Done | None], recorder: Recorder
    ) -> None:
        self._walk, self._known, self._recorder = walk, known, recorder

    def forward(self, *arguments: Any) -> Any:
        return self._look_up(self._walk.forward, arguments)

    def backward(self, *arguments: Any) -> Any:
        return self._look_up(self._walk.backward, arguments)

    def _look_up(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        recipe, schedule, *tensors = arguments
        cast = torch.is_autocast_enabled("cpu")  # where a rehearsal's tensors are
        key = (run, recipe, schedule, cast, *(_form(leaf) for leaf in tree_leaves(tensors)))
        done = self._known.get(key)
        if done is not None:
            return self._repeat(done)
        if key in self._known:
            return run(*arguments)
        start, before = self._recorder.memory.start_span(), self._recorder.work()
        results = run(*arguments)
        given, structure = tree_flatten(results)
        span = self._recorder.memory.span(start, given) if _are_whole(given) else None
        work = self._recorder.work().minus(before)
        self._known[key] = span and _Done(span, work, [_form(each)[:3] for each in given], structure)
        return results

    def _repeat(self, done: _Done) -> Any:
        def make(number: int) -> Tensor:
            shape, stride, dtype = done.shapes[number]
            return torch.empty_strided(shape, stride, dtype=dtype)

        self._recorder.add(done.work)
        return tree_unflatten(self._recorder.memory.repeat(done.span, make), done.structure)


def _form(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype, bool]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _are_whole(results: list[Any]) -> bool:
    """Whether each is a tensor that has a storage of its own and fills it."""
    if not all(isinstance(each, Tensor) for each in results):
        return False
    storages = [each.untyped_storage() for each in results]
    filled = all(
        storage.nbytes() == each.numel() * each.element_size()
        for each, storage in zip(results, storages, strict=True)
    )
    return filled and len({storage._cdata for storage in storages}) == len(storages)
