"""Pictures of parameters by offset: norms of bank entries, and learned mixtures of shifts."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from models import OffsetGrid
from models.mixers.interface import Mixer
from models.transformer import GPT, ViT


def mixers(net: ViT | GPT, layer: int | None = None) -> dict[int, Mixer]:
    """The mixers of a net by layer, or the one of `layer`."""
    found = [next((m for m in each.modules() if isinstance(m, Mixer)), None) for each in net.layers]
    return {i: m for i, m in enumerate(found) if m is not None and layer in (None, i)}


def by_offset(grid: OffsetGrid, numbers_K: Tensor) -> Tensor:
    """Numbers of the entries, as a map over the offsets of the grid, least offset first."""
    reach = [range(0 if grid.causal else 1 - n, n) for n in grid.shape]
    entries = [grid.entry(offset) for offset in itertools.product(*reach)]
    return numbers_K[entries].view([len(side) for side in reach])


@torch.no_grad()
def bank_norms(mixer: nn.Module) -> dict[str, Tensor]:
    """The root mean square of the matrix of every offset, by bank; empty where there is none."""
    assert isinstance(mixer, Mixer)
    schedule, found = mixer.schedule, {}
    if schedule is None or type(schedule.grid) is not OffsetGrid:
        return {}
    for name, dims in mixer.axes().items():
        if dims.get(0) == "entry":
            norms_K = mixer.get_parameter(name).float().flatten(1).square().mean(1).sqrt().cpu()
            found[name] = by_offset(schedule.grid, norms_K)
    return found


def draw_banks(net: ViT | GPT, layer: int | None = None) -> Figure | None:
    """A row for each layer and a column for each bank; one scale for all. None for a net without banks."""
    rows = {i: norms for i, mixer in mixers(net, layer).items() if (norms := bank_norms(mixer))}
    if not rows:
        return None
    return _maps(rows, "root mean square of the bank's matrix for each offset δ = query − key")


def draw_shifts(net: ViT | GPT, layer: int | None = None) -> Figure | None:
    """A row for each layer and a column for each head that shifts; None for a net without."""
    rows = {}
    for i, mixer in mixers(net, layer).items():
        pi = mixer.shifts()
        if pi is not None:
            rows[i] = {f"head {head}": each.detach().float().cpu() for head, each in enumerate(pi)}
    return _maps(rows, "weight of each shift by δ = query − key") if rows else None


def _maps(rows: dict[int, dict[str, Tensor]], title: str) -> Figure:
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(2.1 * columns + 1.2, 1.9 * len(rows) + 0.6))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    numbers = [map_ for maps in rows.values() for map_ in maps.values()]
    low, high = min(float(m.min()) for m in numbers), max(float(m.max()) for m in numbers)
    for row, (layer, maps) in zip(axes, rows.items(), strict=True):
        for axis in row[len(maps) :]:
            axis.set_axis_off()
        for axis, (name, numbers_by_offset) in zip(row, maps.items(), strict=False):
            draw_map(axis, numbers_by_offset, low, high)
            axis.set_title(f"layer {layer}, {name}")
        if row[0].images:
            figure.colorbar(row[0].images[0], ax=row[len(maps) - 1])
    figure.suptitle(title, fontsize=9)
    return figure


def draw_map(axis: Any, numbers: Tensor, low: float, high: float) -> None:
    """Numbers by offset: a heat map over an image's, a line over a sequence's. Of more dimensions the
    last two are drawn, the others at offset 0."""
    while numbers.dim() > 2:
        numbers = numbers[len(numbers) // 2]
    if numbers.dim() == 1:
        first = 0 if len(numbers) % 2 == 0 else -(len(numbers) // 2)
        axis.plot(range(first, first + len(numbers)), numbers)
        axis.set_ylim(min(0.0, low), 1.05 * high)
        return
    down, across = (side // 2 for side in numbers.shape)
    extent = (-across - 0.5, across + 0.5, down + 0.5, -down - 0.5)
    axis.imshow(numbers.numpy(), vmin=low, vmax=high, extent=extent, cmap="viridis")
