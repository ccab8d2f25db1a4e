"""What a person sees of a running net: a bar in a terminal, plain lines elsewhere."""

import sys
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TerminalProgress:
    """A live bar with loss, learning rate, samples per second and time left."""

    def __init__(self, label: str, unit: str, done: int, steps: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            expand=True,
        )
        self._unit = unit
        self._task = self._bar.add_task(label, completed=done, total=steps, figures="starting")

    def __enter__(self) -> "TerminalProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One step is under way to the device; its numbers are not known yet."""
        self._bar.advance(self._task)

    def show(self, step: int, loss: float, lr: float, rate: float) -> None:
        """Show the figures of `step`; `rate` is samples per second."""
        figures = f"loss {loss:.3f}  lr {lr:.1e}  {rate:,.0f} {self._unit}/s"
        self._bar.update(self._task, completed=step, figures=figures)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


class PlainProgress:
    """The same figures as lines, for files and pipes."""

    def __init__(self, label: str, unit: str, done: int, steps: int, batch: int) -> None:
        self._label = label
        self._unit = unit
        self._steps = steps
        self._batch = batch

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self) -> None:
        """Nothing is shown between the lines."""

    def show(self, step: int, loss: float, lr: float, rate: float) -> None:
        """Print the figures of `step`; `rate` is samples per second."""
        left = timedelta(seconds=round((self._steps - step) * self._batch / rate))
        self.say(
            f"{self._label}  step {step}/{self._steps}  loss {loss:.4f}  lr {lr:.2e}  "
            f"{rate:,.0f} {self._unit}/s  {left} left"
        )

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)


def open_progress(
    label: str, unit: str, done: int, steps: int, batch: int
) -> TerminalProgress | PlainProgress:
    """The bar when standard output is a terminal, lines otherwise."""
    if sys.stdout.isatty() and Console().is_terminal:
        return TerminalProgress(label, unit, done, steps)
    return PlainProgress(label, unit, done, steps, batch)
