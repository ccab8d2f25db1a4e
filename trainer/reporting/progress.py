"""Progress of a long task: a bar in a terminal, lines in files and pipes."""

import sys
import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows how much of `total` is done, some figures, and the time left.

    done          already done by an earlier start
    label         name of the task
    unit          "step": show the count, as in step 3/60; empty: show per cent
    line_seconds  least time between two lines; 0: a line for every `show`
    """

    def __init__(
        self, total: int, done: int = 0, *, label: str = "", unit: str = "", line_seconds: float = 10.0
    ) -> None:
        self._total, self._first = max(total, 1), done
        self._label, self._unit, self._line_seconds = label, unit, line_seconds
        self._start = self._shown = time.monotonic()
        self._bar = None
        if sys.stdout.isatty() and Console().is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                TextColumn("{task.completed}/{task.total}" if unit else "{task.percentage:>3.0f}%"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                expand=True,
            )
            self._task = self._bar.add_task(label, total=self._total, completed=done, figures="starting")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self) -> None:
        """Move the bar by one; its figures are not known yet."""
        if self._bar:
            self._bar.advance(self._task)

    def show(self, done: int, figures: str) -> None:
        """Show that `done` of the total is done, with `figures` about it."""
        if self._bar:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        if now - self._shown < self._line_seconds or done <= self._first:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = timedelta(seconds=round((self._total - done) / rate))
        place = f"{self._unit} {done}/{self._total}" if self._unit else f"{done / self._total:6.1%}"
        self.say("  ".join([*([self._label] if self._label else []), place, figures, f"{left} left"]))

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, flush=True)
