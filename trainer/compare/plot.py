"""The plot of a comparison: a line for each net with its metrics, parameters and time of a step."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Protocol

from matplotlib.figure import Figure

from trainer.pictures.style import FILLS, MARKERS, png, styled

_COSTS = {"parameters": ("parameters", 1.0), "step_seconds": ("ms a step", 1e3)}


class Net(Protocol):
    """What is drawn of a net: numbers of its runs, by name."""

    @property
    def name(self) -> str: ...
    @property
    def numbers(self) -> dict[str, list[float]]: ...


def plot(nets: Sequence[Net], title: str) -> bytes:
    """A PNG: mean ± deviation of every metric, single runs as small dots, beside what the nets cost."""
    known = {name for net in nets for name in net.numbers}
    costs = [key for key in _COSTS if key in known]
    metrics = [
        name
        for net in nets
        for name in net.numbers
        if name not in (*_COSTS, "flops_per_sample", "peak_bytes")
    ]
    with styled():
        figure = Figure(figsize=(7.5 + 0.8 * len(costs), 1.1 + 0.33 * len(nets)))
        widths = [3.2] + [1.2] * len(costs)
        axes = figure.subplots(1, 1 + len(costs), sharey=True, width_ratios=widths, squeeze=False)[0]
        _draw_metrics(axes[0], nets, list(dict.fromkeys(metrics)))
        for axis, key in zip(axes[1:], costs, strict=True):
            _draw_cost(axis, nets, key)
        axes[0].set_yticks(range(len(nets)), [net.name for net in nets])
        axes[0].set_ylim(len(nets) - 0.5, -0.5)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        return png(figure)


def _draw_metrics(axis: Any, nets: Sequence[Net], metrics: list[str]) -> None:
    for number, name in enumerate(metrics):
        marker, fill = MARKERS[number % len(MARKERS)], FILLS[number % len(FILLS)]
        shift = 0.5 * ((number + 0.5) / len(metrics) - 0.5)
        drawn = [(place + shift, net.numbers[name]) for place, net in enumerate(nets) if name in net.numbers]
        for place, values in drawn:
            axis.plot(values, [place] * len(values), ".", color="0.6", markersize=3, linestyle="none")
        axis.errorbar(
            [fmean(values) for _, values in drawn],
            [place for place, _ in drawn],
            xerr=[stdev(values) if len(values) > 1 else 0.0 for _, values in drawn],
            fmt=marker,
            color="black",
            markerfacecolor=fill,
            markeredgecolor="black",
            elinewidth=1,
            label=name,
        )
    axis.grid(axis="both")
    axis.set_xlabel(metrics[0] if len(metrics) == 1 else "metric")
    if len(metrics) > 1:
        axis.legend(loc="best")


def _draw_cost(axis: Any, nets: Sequence[Net], key: str) -> None:
    title, factor = _COSTS[key]
    means = [factor * fmean(net.numbers[key]) if key in net.numbers else 0.0 for net in nets]
    axis.barh(range(len(nets)), means, height=0.5, color="0.75", edgecolor="black", linewidth=0.6)
    for place, mean in enumerate(means):
        axis.text(mean, place, f" {_short(mean)}", va="center", fontsize=7)
    axis.set_xlabel(title)
    axis.set_xlim(0, 1.45 * max(means, default=1.0) or 1.0)
    axis.tick_params(axis="x", labelbottom=False, bottom=False)
    axis.spines["bottom"].set_visible(False)


def _short(value: float) -> str:
    for bound, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:.3g}{unit}"
    return f"{value:.3g}"
