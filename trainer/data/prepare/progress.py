"""What a person sees of a running preparation: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 10.0


class PrepareProgress:
    """Progress through `total` bytes of input, of which `done` were read by an earlier run."""

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._first = max(total, 1), done
        self._start = self._shown = time.monotonic()
        self._bar = None
        if sys.stdout.isatty() and Console().is_terminal:
            figures = TextColumn("{task.fields[figures]}")
            columns = (TaskProgressColumn(), BarColumn(), figures, TimeRemainingColumn(), TextColumn("left"))
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("", total=self._total, completed=done, figures="")

    def __enter__(self) -> "PrepareProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, figures: str) -> None:
        """`done` bytes of the input are through; `figures` says what came of them."""
        if self._bar:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        if now - self._shown < _LINE_SECONDS or done <= self._first:
            return
        self._shown = now
        rate = (done - self._first) / (now - self._start)
        left = timedelta(seconds=round((self._total - done) / rate))
        print(f"{done / self._total:6.1%}  {figures}  {left} left", flush=True)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, flush=True)
