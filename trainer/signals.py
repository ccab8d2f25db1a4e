"""Ctrl-C, termination and early warnings: remember the signal and let the current step finish."""

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from parallel.engine.interface import VOTES
from parallel.processes import largest_on_host, rank, world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask for a stop. Schedulers send one of the last two before a job's time limit."""

assert len(SIGNALS) == VOTES - 1  # the last vote is about a save


class StopRequest:
    """A context in which SIGNALS only request a stop; a second Ctrl-C ends the process at once.

    `number` is the signal that all ranks know of. A single process knows at once. Several vote in every
    step (`votes`), because each rank gets the signal at another moment, and one that stopped early would
    leave the others hanging in a collective; the engine sums the votes, and `count` reads the sums. Where
    no step runs they ask each other (`agree`).

    In the same way all ranks learn, at the same step, that a save in the background has failed: this rank
    says so by `save_failed`, and then `any_save_failed` is true on all.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.save_failed = self.any_save_failed = False
        self._seen: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set signal handlers.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def votes(self, device: torch.device) -> Tensor:
        """This rank's votes, float32 [VOTES]: 1 for the signal that it has seen, and for a failed save."""
        votes = torch.zeros(VOTES, device=device)
        if self._seen:
            votes[SIGNALS.index(self._seen)] = 1
        if self.save_failed:
            votes[-1] = 1
        return votes

    def count(self, votes: Sequence[float]) -> None:
        """Learn from the sum of all ranks' votes, of the same step on every rank, whether to stop."""
        for number, count in zip(SIGNALS, votes[:-1], strict=True):
            if count and self.number is None:
                self.number = number
        self.any_save_failed = self.any_save_failed or votes[-1] > 0

    def agree(self) -> bool:
        """Collective, between the hosts alone: whether to stop, because some rank was asked to."""
        if self.number is None:
            self.number = largest_on_host(self._seen or 0) or None
        return self.number is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._seen = self._seen or number
        if world_size() == 1:
            self.number = self._seen
        if number == signal.SIGINT and rank() == 0:
            # print() could fail inside a handler.
            os.write(2, b"\nstopping after this step; Ctrl-C again ends the run at once, without saving\n")
        if signal.SIGINT in self._previous:
            # Not KeyboardInterrupt, which would wait for a collective that may never end.
            ignored = self._previous[signal.SIGINT] is signal.SIG_IGN
            signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
