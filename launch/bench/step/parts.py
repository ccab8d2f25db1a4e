"""Tells apart, while a training step runs, the operator's passes, the other products, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.ops import streamed
from models.ops.walk.interface import Walk
from parallel.rehearsal.recorder import UNSEEN, product_flops


class Call(NamedTuple):
    """Something that a step computes, and could compute again with the same tensors."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @torch.no_grad()
    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)


@contextmanager
def parts_of_step(
    operator: Callable[[Call], Any], other: Callable[[Call, Any, bool], None]
) -> Iterator[None]:
    """Everything computed inside is told apart.

    operator   runs a pass of the operator over the pairs, and returns its result
    other      hears of every other torch operator after it has run, but for collectives: the call, its
               result, and whether it is a matrix product, a convolution or attention
    """
    outside, choose = _Outside(other), streamed.choose_walk

    def follow(function: Callable[..., Any]) -> Callable[..., Any]:
        def followed(*args: Any) -> Any:
            outside.paused = True
            try:
                return operator(Call(function, args, {}))
            finally:
                outside.paused = False

        return followed

    def chosen(*args: Any) -> type[Walk]:
        walk = choose(*args)
        names = ("forward", "backward")
        return type(walk.__name__, (walk,), {n: staticmethod(follow(getattr(walk, n))) for n in names})

    with mock.patch.object(streamed, "choose_walk", chosen), outside:
        yield


class _Outside(TorchDispatchMode):
    """Tells `other` of what is computed outside the operator."""

    def __init__(self, other: Callable[[Call, Any, bool], None]) -> None:
        super().__init__()
        self._other = other
        self.paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch's compiler is loaded, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.paused and func.namespace not in UNSEEN:
            self._other(Call(func, args, kwargs), out, product_flops(func, args, kwargs, out) > 0)
        return out
