"""Runs a logger in a thread of its own, so that neither its errors nor its network stop a run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

_CLOSE_SECONDS = 30.0  # to send what is left


class Logger(Protocol):
    """A service that takes scalars; its methods may fail, and may take long."""

    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class Background:
    """Scalars for the logger that `build` makes.

    After the first error nothing more is sent, and `say` is told once, in a later call. What is not sent
    within `close_seconds` of `close` is lost.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Logger],
        say: Callable[[str], None],
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        self._name, self._build, self._say, self._close_seconds = name, build, say, close_seconds
        self._calls: queue.SimpleQueue[tuple[str, float, int] | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Never waits, never raises."""
        if self._thread.is_alive():
            self._calls.put((name, value, step))
        self._tell()

    def close(self) -> None:
        """Wait a while for what is left."""
        self._calls.put(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._failure = f"did not take everything within {self._close_seconds:g} s"
        self._tell()

    def _tell(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            self._say(f"{self._name} logs nothing more, the run goes on: {failure}")

    def _work(self) -> None:
        try:
            logger = self._build()
            while (call := self._calls.get()) is not None:
                logger.add_scalar(*call)
            logger.close()
        except BaseException as error:  # whatever a service's client raises, SystemExit included
            first = " ".join(str(error).split())[:200]
            self._failure = f"{type(error).__name__}: {first}"
