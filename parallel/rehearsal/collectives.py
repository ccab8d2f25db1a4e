"""Every collective of a rehearsed step in order, and whether ranks agree on them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from parallel.mesh import Mesh
from parallel.rehearsal.recorder import Recorder
from parallel.traffic_counter import Traffic, around_collectives

_PASSED_THROUGH = ("/traffic_counter.py", "/contextlib.py", "/typing_extensions.py")
STACK = 6  # lines of our own code and DeepSpeed's that are kept of where a collective was called


class Collective(NamedTuple):
    """One collective: what is sent over which axis, and where in the code; `hidden` seconds of kernels were
    launched before the engine waited for it."""

    axis: str
    operation: str
    dtype: str
    bytes: int
    stack: tuple[str, ...]
    hidden: float = 0.0

    @property
    def same(self) -> tuple[str, str, str, int]:
        """What has to be the same on all ranks of the axis."""
        return self[:4]

    def __str__(self) -> str:
        return f"{self.axis} {self.operation} of {self.bytes:,} bytes {self.dtype}".rstrip()


class _Waited:
    """A collective in progress, as torch.distributed gives it; notes when it is waited for."""

    def __init__(self, work: Any, waited: Callable[[], None]) -> None:
        self._work, self._waited = work, waited

    def wait(self, *arguments: Any) -> Any:
        self._waited()
        return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


@contextmanager
def recorded_collectives(mesh: Mesh, recorder: Recorder) -> Iterator[list[Collective]]:
    """Records this process's collectives while the context lasts."""
    log: list[Collective] = []

    def around(axis: str, operation: str, tensors: list[Tensor], call: Callable[[], Any]) -> Any:
        recorder.memory.mark_as_sent(tensors)
        size = sum(t.numel() * t.element_size() for t in tensors)
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        index, before = len(log), recorder.seconds
        log.append(Collective(axis, operation, dtype, size, _stack()))
        work = call()
        for tensor in tensors:
            _forget_constant(tensor)

        def waited() -> None:
            log[index] = log[index]._replace(hidden=recorder.seconds - before)

        return work if work is None else _Waited(work, waited)

    with around_collectives(mesh, around):
        yield log


def _forget_constant(tensor: Tensor) -> None:
    """A fake tensor made from a number knows it, and a fake collective leaves it as it was: the number of one
    rank in place of the sum over all, without an error."""
    if isinstance(tensor, FakeTensor) and tensor.constant is not None:
        mode: FakeTensorMode = tensor.fake_mode
        mode.fake_tensor_converter.invalidate_constant_aliases(tensor.constant)
        tensor.constant = None


def _stack() -> tuple[str, ...]:
    """The innermost lines outside of torch, innermost first."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < STACK:
        path = frame.f_code.co_filename
        machinery = "/torch/" in path or path.endswith(_PASSED_THROUGH)
        if not machinery and frame.f_code.co_name != "__torch_function__":
            short = "/".join(path.split("/")[-2:])
            found.append(f"{short}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(found)


def traffic_of(log: list[Collective]) -> Traffic:
    """The payloads of the collectives, as traffic_counter.py counts them."""
    traffic = Traffic()
    for each in log:
        traffic.add(each.axis, each.operation, each.bytes)
    return traffic


def digest(log: list[Collective]) -> str:
    """Twelve digits that are the same for the same collectives in the same order."""
    return hashlib.sha256(repr([each.same for each in log]).encode()).hexdigest()[:12]


class Disagreement(NamedTuple):
    """The first collective that two ranks of a group do not both make: its number, and each rank's, None
    where it makes no more."""

    ranks: tuple[int, int]
    number: int
    calls: tuple[Collective | None, Collective | None]

    def lines(self) -> list[str]:
        first, second = self.ranks
        said = [f"ranks {first} and {second} differ in collective {self.number + 1}, so both would hang:"]
        for rank, call in zip(self.ranks, self.calls, strict=True):
            said.append(f"  rank {rank}: {call or 'no more collectives'}")
            said += [f"    at {line}" for line in (call.stack if call else ())]
        return said


def first_disagreement(logs: dict[int, list[Collective]], model: int) -> Disagreement | None:
    """The first difference between ranks that meet in a group; `model` ranks are a model-parallel group.

    Replicas have to make the same collectives. Ranks of one model-parallel group may hold parts of different
    sizes, which they send over the data axis; all else has to be the same.
    """
    ranks = sorted(logs)
    for first, second in pairwise(ranks):
        twin = next((r for r in ranks if r < second and r % model == second % model), None)
        if twin is not None:
            found = _difference(twin, logs[twin], second, logs[second])
        else:
            a, b = ([c for c in logs[r] if c.axis != "data"] for r in (first, second))
            found = _difference(first, a, second, b)
        if found:
            return found
    return None


def _difference(
    rank: int, log: list[Collective], other: int, other_log: list[Collective]
) -> Disagreement | None:
    for number in range(max(len(log), len(other_log))):
        calls = tuple(each[number] if number < len(each) else None for each in (log, other_log))
        mine, theirs = calls
        if mine is None or theirs is None or mine.same != theirs.same:
            return Disagreement((rank, other), number, (mine, theirs))
    return None
