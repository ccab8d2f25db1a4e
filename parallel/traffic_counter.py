"""Bytes that collectives send, by mesh axis: how they are defined, and counted while training runs.

The *payload* of a collective is its full tensor: what every rank holds after an all-reduce, broadcast or
all-gather, and before a reduce-scatter. Payloads are integers, so predictions can be compared with counts
exactly. *Sent* are the bytes that leave one rank when the n ranks of the axis run a ring algorithm, as
large collectives do: 2(n − 1)/n of the payload for an all-reduce, (n − 1)/n for any other. This makes an
all-reduce of activations comparable with ZeRO-3's gathers and with a bandwidth.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

from parallel.mesh import Mesh

AXES = ("data", "offset", "tensor", "model")

# Process-group methods that every torch.distributed call ends in, also calls through functions imported
# earlier: name → (operation, index of the argument with the full tensor).
_METHODS: dict[str, tuple[str, int | None]] = {
    "barrier": ("barrier", None),
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce", 0),
    "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0),
    "allgather": ("all_gather", 0),
    "allgather_coalesced": ("all_gather", 0),
    "allgather_into_tensor_coalesced": ("all_gather", 0),
    "all_gather_single": ("all_gather", 0),
    "all_gather_single_coalesced": ("all_gather", 0),
    "_allgather_base": ("all_gather", 0),
    "reduce_scatter": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "alltoall": ("all_to_all", 1),
    "alltoall_base": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 1),
}


_left_out = threading.local()


def leave_out_thread() -> None:
    """Collectives of this thread are not the training's: a checkpoint that is written in the background. The
    main thread's always are."""
    _left_out.thread = threading.current_thread() is not threading.main_thread()


@dataclass
class Traffic:
    """Payload bytes by (axis, operation), as one rank sees them."""

    payload: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, axis: str, operation: str, payload: int) -> None:
        """Add a collective; the axis is "world" or "other" for groups that are not the mesh's."""
        if payload:
            self.payload[axis, operation] += payload

    def times(self, count: int) -> Traffic:
        return Traffic(Counter(dict((key, payload * count) for key, payload in self.payload.items())))

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.payload + other.payload)

    def by_group(self, mesh: Mesh) -> Traffic:
        """As it is counted: where the whole model-parallel group is one axis, both are one group, under the
        axis's name."""
        if mesh.offset > 1 < mesh.tensor:
            return self
        alone = "tensor" if mesh.tensor > 1 else "offset"
        found = Traffic()
        for (axis, operation), payload in self.payload.items():
            found.add(alone if axis == "model" else axis, operation, payload)
        return found

    def sent(self, mesh: Mesh) -> dict[str, int]:
        """Bytes that leave this rank, by axis; includes axes without traffic."""
        total: dict[str, float] = dict.fromkeys(AXES, 0.0)
        for (axis, operation), payload in self.payload.items():
            ranks = getattr(mesh, axis) if axis in AXES else mesh.world
            passes = 2 if operation == "all_reduce" else 1
            total[axis] = total.get(axis, 0.0) + passes * payload * (ranks - 1) / ranks
        return {axis: round(sent) for axis, sent in total.items()}


@contextmanager
def counted_traffic(mesh: Mesh) -> Iterator[Traffic]:
    """Count this process's collectives by axis of `mesh` while the context lasts.

    Costs a few microseconds per collective.
    """
    traffic = Traffic()

    def count(axis: str, operation: str, tensors: list[Tensor], call: Callable[[], Any]) -> Any:
        traffic.add(axis, operation, sum(t.numel() * t.element_size() for t in tensors))
        return call()

    with around_collectives(mesh, count):
        yield traffic


@contextmanager
def around_collectives(
    mesh: Mesh, around: Callable[[str, str, list[Tensor], Callable[[], Any]], Any]
) -> Iterator[None]:
    """Hands every collective of this process to `around`: axis of `mesh`, operation, the full tensors of its
    payload, and the call, whose result (a torch.distributed.Work) `around` returns."""

    def handing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        operation, argument = _METHODS[name]

        @functools.wraps(method)
        def collective(group: dist.ProcessGroup, *arguments: Any, **options: Any) -> Any:
            if group.size() == 1 or getattr(_left_out, "thread", False):
                return method(group, *arguments, **options)
            tensors = [] if argument is None else _flat(arguments[argument])
            return around(
                _axis(group, mesh), operation, tensors, lambda: method(group, *arguments, **options)
            )

        return collective

    names = [name for name in _METHODS if name in vars(dist.ProcessGroup)]
    with _wrapped(dist.ProcessGroup, names, handing):
        yield


@contextmanager
def inside_collectives(around: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter `around()` for each collective that this process calls, and for each wait for one."""

    def entering(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def entered(*arguments: Any, **options: Any) -> Any:
            if getattr(_left_out, "thread", False):
                return method(*arguments, **options)
            with around():
                return method(*arguments, **options)

        return entered

    names = [name for name in _METHODS if name in vars(dist.ProcessGroup)]
    with _wrapped(dist.ProcessGroup, names, entering), _wrapped(dist.Work, ["wait"], entering):
        yield


@contextmanager
def _wrapped(
    owner: type, names: Iterable[str], wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Methods of a class replaced by `wrap(name, method)` while the context lasts."""
    originals = {name: vars(owner)[name] for name in names}
    for name in originals:
        setattr(owner, name, wrap(name, getattr(owner, name)))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def _axis(group: dist.ProcessGroup, mesh: Mesh) -> str:
    for axis in AXES:  # "model" last: see `Traffic.by_group`
        if group is mesh.group(axis):
            return axis
    return "world" if group is dist.group.WORLD else "other"


def _flat(tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    return [tensor for each in tensors for tensor in _flat(each)]
