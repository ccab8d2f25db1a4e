"""Loss and learning rate of runs, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.run_directory.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(runs: dict[str, Path]) -> Figure | None:
    """The loss, its running mean, and the learning rate of each run by name; None where none has a step."""
    from matplotlib.figure import Figure  # here, because it takes long to import

    figure = Figure(figsize=(8.0, 3.0))
    loss_axis, lr_axis = figure.subplots(1, 2, width_ratios=[2, 1])
    drawn = False
    for name, path in runs.items():
        steps = [record for record in RunDirectory(path).read_metrics() if "loss" in record]
        if not steps:
            continue
        drawn, numbers = True, [record["step"] for record in steps]
        losses = [record["loss"] for record in steps]
        (line,) = loss_axis.plot(numbers, smooth(losses), label=name)
        loss_axis.plot(numbers, losses, color=line.get_color(), alpha=0.2, linewidth=0.6, linestyle="-")
        lr_axis.plot(numbers, [record["lr"] for record in steps])
    loss_axis.set_xlabel("step")
    loss_axis.set_ylabel("training loss")
    lr_axis.set_xlabel("step")
    lr_axis.set_ylabel("learning rate")
    loss_axis.grid()
    lr_axis.grid()
    if len(runs) > 1:
        loss_axis.legend()
    return figure if drawn else None


def smooth(values: list[float]) -> list[float]:
    """The mean of each value with those around it, a twentieth of all on either side."""
    reach = len(values) // 20
    return [
        sum(near) / len(near)
        for near in (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    ]
