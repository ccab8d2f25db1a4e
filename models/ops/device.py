"""What kind of device an operator works for: meta tensors stand for one, to be counted, and fake tensors on
the CPU may, in a rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_stands_for: dict[str, list[str]] = {"meta": ["cuda"], "cpu": []}


def device_type(device: torch.device) -> str:
    """The device's type; for one that stands for another, that one's."""
    others = _stands_for.get(device.type)
    return others[-1] if others else device.type


@contextmanager
def stands_for(device_type: str, stand_in: str = "meta") -> Iterator[None]:
    """Cuts chunks on the device of type `stand_in` as on devices of this type, to measure what a pass would
    cost there."""
    _stands_for[stand_in].append(device_type)
    try:
        yield
    finally:
        _stands_for[stand_in].pop()


def on_host(build: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Runs `build` outside of dispatch modes: its tables are made of numbers that it reads, are kept, and are
    no part of the pass that a mode looks at."""

    @wraps(build)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with _disable_current_modes():
            return build(*arguments, **options)

    return run
