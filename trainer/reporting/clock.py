"""Where the time of training steps goes, measured without waiting for the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Seconds by phase: data, forward, backward, optimizer, collectives (inside the last three), saving.

    On CUDA a phase lasts from one event on the current stream to another; they are read by `take`, after a
    wait for the device that happens anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around work that is launched on the device."""
        if self._device.type != "cuda":
            with self.host_phase(name):
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((name, start, end))

    @contextmanager
    def host_phase(self, name: str) -> Iterator[None]:
        """Around work of this process: loading data, writing files."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds since the last call, by phase. The device must have finished them."""
        for name, start, end in self._events:
            self._seconds[name] += start.elapsed_time(end) / 1e3
        taken = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return taken
