"""What is alive during a rehearsed step: every storage from its first use to its end, by kind."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_SAVED = ("activations", "recomputed", "host")
MOST_TENSORS = 12  # of a peak, shown one by one


class Living(NamedTuple):
    """Equal tensors that are alive at a peak: what they are, where they were made, how many, their bytes."""

    kind: str
    made_by: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    number: int
    bytes: int


class Peak(NamedTuple):
    """The most bytes alive at once, when, by kind, and the largest tensors."""

    bytes: int
    moment: str
    by_kind: dict[str, int]
    largest: list[Living]


class _Storage(NamedTuple):
    operator: str
    phase: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Span(NamedTuple):
    """What a piece of work allocates: what is alive at its peak, without its results, and the results, with
    whether they are alive then."""

    alive: list[_Storage]
    results: list[tuple[_Storage, bool]]


class Allocations:
    """A record of storages: bytes as the allocator would be asked for them, without its rounding.

    phase    what the engine does: "build", "forward", "backward", "update", "evaluation", "save and load"
    module   the path of the module whose forward runs
    """

    def __init__(self) -> None:
        self.phase, self.module = "build", ""
        self._storages: list[_Storage] = []
        self._alive: dict[int, int] = {}  # storage → its number
        self._changes: list[tuple[int, int]] = []  # number, bytes
        self._phases: list[tuple[int, str]] = [(0, "build")]  # from this change on
        self._kinds: dict[int, str] = {}
        self._recomputing = ""

    def watch(self, tensor: Tensor, operator: str) -> None:
        """Counts the tensor's storage from now until it is freed, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = 0 if _device(tensor) == "meta" else storage.nbytes()
        number = len(self._storages)
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        self._storages.append(_Storage(operator, self.phase, self.module, shape, dtype, size))
        self._alive[key] = number
        self._changes.append((number, size))
        weakref.finalize(storage, self._release, key, number, size)

    def _release(self, key: int, number: int, size: int) -> None:
        if self._alive.get(key) == number:
            del self._alive[key]
            self._changes.append((number, -size))

    def inside(self, operator: str, size: int) -> None:
        """Counts bytes that an operator allocates and frees before it returns."""
        number = len(self._storages)
        self._storages.append(_Storage(operator, self.phase, self.module, (size,), "bytes", size))
        self._changes += [(number, size), (number, -size)]

    def start_span(self) -> tuple[int, int]:
        """Where the record is: see `span`."""
        return len(self._changes), len(self._storages)

    def span(self, start: tuple[int, int], results: list[Tensor]) -> Span | None:
        """What has been allocated since `start`; None where more is left of it than tables and `results`, or
        where one of these is older."""
        change, first = start
        given = [self._alive.get(tensor.untyped_storage()._cdata, -1) for tensor in results]
        alive: dict[int, int] = {}
        at_peak: dict[int, int] = {}
        total = highest = 0
        for number, size in self._changes[change:]:
            if number < first or self._kinds.get(number) == "tables":
                continue
            total += size
            if size > 0:
                alive[number] = size
            else:
                alive.pop(number, None)
            if total > highest:
                highest, at_peak = total, dict(alive)
        if set(alive) - set(given) or min(given, default=first) < first:
            return None
        return Span(
            [self._storages[number] for number in at_peak if number not in given],
            [(self._storages[number], number in at_peak) for number in given],
        )

    def repeat(self, span: Span, make: Callable[[int], Tensor]) -> list[Tensor]:
        """Records the peak of a piece of work once more; gives its results, the n-th of which is make(n)."""
        results: dict[int, Tensor] = {}

        def give(early: bool) -> None:
            for number, (storage, at_peak) in enumerate(span.results):
                if at_peak == early:
                    tensor = results[number] = make(number)
                    own = self._alive[tensor.untyped_storage()._cdata]
                    self._storages[own] = self._storages[own]._replace(operator=storage.operator)

        first = len(self._storages)
        for storage in span.alive:
            self._changes.append((len(self._storages), storage.bytes))
            self._storages.append(storage._replace(phase=self.phase, module=self.module))
        last = len(self._storages)
        give(early=True)
        self._changes += [(number, -self._storages[number].bytes) for number in range(first, last)]
        give(early=False)
        return [results[number] for number in range(len(results))]

    def mark(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Says of what kind some tensors are, where phases do not tell."""
        for tensor in tensors:
            self.watch(tensor, kind)
            self._kinds[self._alive[tensor.untyped_storage()._cdata]] = kind

    def mark_if_new(self, tensor: Tensor, kind: str) -> None:
        """The same of a tensor that is seen for the first time."""
        if tensor.untyped_storage()._cdata not in self._alive:
            self.mark([tensor], kind)

    def mark_as_sent(self, tensors: Iterable[Tensor]) -> None:
        """Says that a collective sends these: its buffers, unless they are something else."""
        for tensor in tensors:
            self.watch(tensor, "collectives")
            self._kinds.setdefault(self._alive[tensor.untyped_storage()._cdata], "collectives")

    def enter(self, phase: str) -> None:
        """Begins a phase. What forward leaves behind are activations; what backward leaves, gradients."""
        left = {"forward": "activations", "backward": "gradients", "update": "states"}.get(self.phase)
        if left is not None and phase != self.phase:
            for number in self._alive.values():
                born = self._storages[number].phase
                if born == self.phase and self._kinds.get(number, "collectives") == "collectives":
                    self._kinds[number] = left
        self.phase = phase
        self._phases.append((len(self._changes), phase))

    def now(self) -> int:
        """Where the record is; `peak` looks at what follows."""
        return len(self._changes)

    def bytes_of(self, kind: str) -> int:
        """Bytes that are alive now, of a kind."""
        alive = self._alive.values()
        return sum(self._storages[n].bytes for n in alive if self._kinds.get(n) == kind)

    def peak(self, start: int, stop: int | None = None, without: str | None = None) -> Peak:
        """The peak between two places of the record, leaving out tensors of one kind."""
        alive: dict[int, int] = {}
        total = highest = place = 0
        for index, (number, size) in enumerate(self._changes[:stop]):
            if without is None or self._kinds.get(number) != without:
                total += size
            if index + 1 >= start and total > highest:
                highest, place = total, index + 1
        for number, size in self._changes[:place]:
            if size > 0:
                alive[number] = size
            else:
                alive.pop(number, None)
        kinds = {number: self._kind(number) for number in alive}
        kept = [number for number in alive if kinds[number] != without]
        by_kind: Counter[str] = Counter()
        for number in kept:
            by_kind[kinds[number]] += alive[number]
        return Peak(
            highest, self._moment(place, list(alive)), dict(by_kind.most_common()), self._largest(kept)
        )

    def _kind(self, number: int) -> str:
        if number in self._kinds:
            return self._kinds[number]
        storage = self._storages[number]
        if storage.phase == "build":
            return "buffers"
        if storage.phase == "backward" and storage.module:
            return "recomputed"
        return "workspace"

    def _moment(self, place: int, alive: list[int]) -> str:
        """The phase, and the layer in progress: the one that made the newest tensor in forward; in backward
        the last one that still has activations."""
        phase = next(name for start, name in reversed(self._phases) if start < max(place, 1))
        saved = [self._storages[n].module for n in alive if self._kind(n) in _SAVED]
        layers = [layer for module in saved if (layer := _layer(module)) is not None]
        if phase == "update" or not alive:
            return phase
        newest = self._storages[alive[-1]]
        if phase == "forward":
            return f"forward, {newest.module or 'loss'}"
        if phase == "backward" and layers:
            return f"backward of layer {max(layers) + 1}"
        return phase

    def _largest(self, alive: list[int]) -> list[Living]:
        groups: Counter[tuple[str, str, str, tuple[int, ...], str]] = Counter()
        sizes: Counter[tuple[str, str, str, tuple[int, ...], str]] = Counter()
        for number in alive:
            storage = self._storages[number]
            where = _without_numbers(storage.module)
            key = (self._kind(number), storage.operator, where, storage.shape, storage.dtype)
            groups[key] += 1
            sizes[key] += storage.bytes
        return [Living(*key, groups[key], size) for key, size in sizes.most_common(MOST_TENSORS)]


def _device(tensor: Tensor) -> str:
    """The device's type; asking a fake tensor for its device is an operator call."""
    own = getattr(tensor, "fake_device", None) if type(tensor) is FakeTensor else tensor.device
    return "" if own is None else own.type


def _layer(module: str) -> int | None:
    parts = module.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit() else None


def _without_numbers(module: str) -> str:
    """The same path for all layers: layers.*.mixer."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
