"""Ctrl-C, termination and early warnings: remember the signal and let the current step finish."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGUSR2 only request a stop; a second Ctrl-C acts at once.

    SIGUSR2 is the usual warning before a cluster job's time limit. `number` is the signal that all ranks
    know of: a single process knows at once, several only after `agree`, because each rank gets the
    signal at another moment, and one that stopped early would leave the others hanging in a collective.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._seen: int | None = None
        self._previous: dict[int, Any] = {}
        self._group: distributed.ProcessGroup | None = None

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set signal handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def agree(self) -> int | None:
        """The signal that any rank has seen; the same on every rank.

        Collective: every rank calls it at the same step boundary.
        """
        if not _several_ranks():
            return self.number
        if self._group is None:
            # Over gloo, which does not wait for the step on a CUDA device.
            self._group = distributed.new_group(backend="gloo")  # pyright: ignore[reportAttributeAccessIssue]
        flag = torch.tensor([self._seen or 0])
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group)
        self.number = int(flag) or None
        return self.number

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._seen = self._seen or number
        if not _several_ranks():
            self.number = self._seen
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))


def _several_ranks() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
