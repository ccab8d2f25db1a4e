"""A run on growing clusters: seconds of a step, efficiency and days, from rehearsals of its busiest rank."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from launch.rehearse.rank import Part
from launch.rehearse.ranks import busiest_rank, rehearse
from models.ops.cards import CARDS, HOST_LAUNCH
from parallel.errors import UserError
from parallel.mesh import Mesh, mesh_of
from parallel.planner.layers import LayerKinds
from parallel.planner.memory import fullest_rank, step_memory
from parallel.planner.plan import layer_kinds
from parallel.planner.recommend import Cluster
from parallel.planner.units import size_text
from parallel.rehearsal.seconds import LATENCY, StepSeconds, step_seconds
from trainer.config.run import RunConfig, with_values

_DAY = 86_400
_WIDTH = 120  # of lines in files and pipes


class Scaled(NamedTuple):
    """The run on so many devices; `reason` says why it cannot run there, and then the rest is empty.

    efficiency   steps a second and device, against the smallest number of whole nodes that can run it
    days         of all steps of the config
    """

    devices: int
    mesh: str = ""
    accumulate: int = 0
    micro_batch: int = 0
    peak: int = 0
    seconds: StepSeconds | None = None
    efficiency: float = 0.0
    days: float = 0.0
    reason: str = ""


def parse_devices(text: str) -> list[int]:
    """Numbers of devices from "1,8,64"; raises UserError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise UserError(f"--scale {text}: numbers of devices are needed, as in 1,8,64")
    return sorted({int(word) for word in words})


def scale(config: RunConfig, cluster: Cluster, worlds: Sequence[int], seconds: float) -> list[Scaled]:
    """The config's net with its offset and tensor axes, its global batch, and as few micro-batches as fit.

    Raises UserError for a config without a card to be counted for.
    """
    if config.device == "cpu" or config.precision != "bf16":
        raise UserError(
            f"--scale: kernels are counted for a card in bf16, not for device={config.device} "
            f"precision={config.precision}"
        )
    net = layer_kinds(config.model)
    prepared = [_prepare(config, net, cluster, world) for world in worlds]
    runs = [(world, *each) for world, each in zip(worlds, prepared, strict=True) if not isinstance(each, str)]
    card = next(key for key, card in CARDS.items() if card is cluster.card)
    parts = [Part(own, world, busiest_rank(net, mesh, own.parallel), card) for world, own, _, mesh in runs]
    reports = rehearse(parts, seconds)
    found: dict[int, Scaled] = {}
    for (world, own, at, mesh), report in zip(runs, reports, strict=True):
        taken = step_seconds(report.work, report.collectives, mesh, at)
        found[world] = Scaled(
            world,
            str(mesh),
            own.train.accumulate,
            own.train.batch // own.train.accumulate // mesh.data,
            report.peak.bytes,
            taken,
            days=taken.total * own.train.steps / _DAY,
        )
    rows = [
        found.get(world) or Scaled(world, reason=str(each))
        for world, each in zip(worlds, prepared, strict=True)
    ]
    return _with_efficiency(rows, cluster.devices)


def _prepare(
    config: RunConfig, net: LayerKinds, cluster: Cluster, world: int
) -> tuple[RunConfig, Cluster, Mesh] | str:
    """The config, the cluster and the mesh of so many devices, or why there is none."""
    nodes, devices = -(-world // cluster.devices), min(world, cluster.devices)
    at, train = dataclasses.replace(cluster, nodes=nodes, devices=devices), config.train
    parallel = config.parallel.model_copy(update={"data": "auto"})
    try:
        mesh = mesh_of(parallel, world)
        net.pieces(mesh)
        place, accumulate, least = fullest_rank(net, mesh), train.accumulate, None
        while train.batch % (accumulate * mesh.data) == 0:
            memory = step_memory(net, place, parallel, train.batch, accumulate, config.precision)
            least = memory.peak
            if least <= at.memory:
                values = {"parallel.data": "auto", "train.accumulate": accumulate}
                return with_values(config, values), at, mesh
            accumulate *= 2
    except UserError as error:
        return str(error)
    if least is None:
        return f"train.batch={train.batch} does not divide over {mesh.data} data ranks"
    return f"needs {size_text(least)} at least, a device has {size_text(at.memory)}"


def _with_efficiency(rows: list[Scaled], devices: int) -> list[Scaled]:
    whole = [row for row in rows if row.seconds and row.devices % devices == 0]
    if not whole:
        return rows
    first = whole[0]
    assert first.seconds is not None
    cost = first.devices * first.seconds.total
    return [
        row._replace(efficiency=cost / (row.devices * row.seconds.total)) if row.seconds else row
        for row in rows
    ]


def assumptions(config: RunConfig, cluster: Cluster) -> list[str]:
    """What the figures rest on."""
    card = cluster.card
    assert card is not None
    return [
        f"Counted, not measured, for {card.name}: products at {size_text(card.rate, 'FLOP/s')}, memory at "
        f"{size_text(card.bandwidth, 'B/s')}, cache at {size_text(card.cache_bandwidth, 'B/s')}; a kernel "
        f"takes {1e6 * card.launch:.0f} µs at least, and its launch {1e6 * HOST_LAUNCH:.0f} µs of the host.",
        f"Collectives are rings: {size_text(cluster.bandwidth, 'B/s')} a device inside a node, "
        f"{size_text(cluster.network, 'B/s')} between nodes, and {1e6 * LATENCY:.0f} µs each. They overlap "
        "with the kernels that the engine launches before it waits for them, and with nothing else.",
        f"The global batch stays {config.train.batch}, offset × tensor stays {config.parallel.offset} × "
        f"{config.parallel.tensor}, micro-batches are as few as fit; the busiest rank sets the pace. Loading "
        "data, evaluations, checkpoints and lost nodes take no time here.",
    ]


def show(config: RunConfig, cluster: Cluster, rows: list[Scaled]) -> None:
    """Prints the table and what it assumes."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table(
        title=f"{config.name}: {config.train.steps:,} steps on growing clusters, counted",
        title_justify="left",
        title_style="bold",
    )
    columns = ("devices", "mesh", "micro-batches", "peak", "a step", "efficiency", "binds", "days")
    for column in columns:
        table.add_column(column, justify="left" if column in ("mesh", "binds") else "right")
    for row in rows:
        if row.seconds is None:
            continue
        taken = row.seconds
        parts = " ".join(f"{name} {getattr(taken, name) / taken.total:.0%}" for name in taken._fields)
        table.add_row(
            str(row.devices),
            row.mesh,
            f"{row.accumulate} × {row.micro_batch}",
            size_text(row.peak),
            f"{1e3 * taken.total:.3g} ms",
            f"{row.efficiency:.0%}",
            f"{taken.binds} ({parts})",
            f"{row.days:.3g}",
        )
    console.print(table)
    lines = [f"Not on {row.devices}: {row.reason}." for row in rows if row.reason]
    for line in lines + assumptions(config, cluster):
        console.print(line, markup=False, soft_wrap=True)


def write_csv(rows: list[Scaled], path: Path) -> None:
    """One line for each number of devices; seconds by what they are spent on."""
    header = [name for name in Scaled._fields if name != "seconds"] + [
        "seconds",
        *StepSeconds._fields,
        "binds",
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            own = [value for name, value in zip(row._fields, row, strict=True) if name != "seconds"]
            taken = row.seconds
            writer.writerow(own + ([taken.total, *taken, taken.binds] if taken else [""] * 6))


def plot(config: RunConfig, rows: list[Scaled], path: Path) -> None:
    """Days and efficiency over devices; raises UserError where matplotlib is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError(f"--plot {path}: matplotlib is missing; pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ran = [row for row in rows if row.seconds]
    devices = [row.devices for row in ran]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(devices, [row.days for row in ran], "o-")
    left.set(xlabel="devices", ylabel="days", title=f"{config.name}, counted")
    right.semilogx(devices, [100 * row.efficiency for row in ran], "o-")
    right.set(xlabel="devices", ylabel="efficiency, %", ylim=(0, 105), title="against the smallest cluster")
    for axes in (left, right):
        axes.set_xticks(devices, [str(n) for n in devices])
        axes.minorticks_off()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
