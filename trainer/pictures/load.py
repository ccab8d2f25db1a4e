"""What each rank of a mesh has to do and to hold, as planned."""

from __future__ import annotations

from matplotlib.figure import Figure

from models.mixers.interface import Mixer
from parallel.mesh import Mesh
from parallel.planner.layers import LayerKinds
from parallel.planner.memory import step_memory
from parallel.planner.plan import layer_kinds
from parallel.sharding.layout import offset_shares
from trainer.config.run import RunConfig

_TITLES = ("pairs of the banks, a sample", "bank entries", "bytes at the peak")


def rank_loads(config: RunConfig) -> list[tuple[int, int, float]]:
    """(pairs, entries, bytes) of each rank of the config's model-parallel group: pairs and entries of all
    layers with banks, and the planned peak of memory."""
    net, own = layer_kinds(config.model), config.parallel
    data = own.data if isinstance(own.data, int) else 1
    loads = []
    for rank in range(own.offset * own.tensor):
        mesh = Mesh(data, own.offset, own.tensor, rank)
        pairs, entries = _of_banks(net, mesh)
        train = config.train
        memory = step_memory(net, mesh, own, train.batch, train.accumulate, config.precision)
        loads.append((pairs, entries, memory.peak))
    return loads


def _of_banks(net: LayerKinds, mesh: Mesh) -> tuple[int, int]:
    pairs = entries = 0
    for kind in net.kinds:
        mixer: Mixer = kind.mixer
        if mixer.schedule is None or "entry" not in mixer.divided_axes():
            continue
        share = offset_shares(mixer, mesh.offset)[mesh.offset_rank]
        pairs += kind.repeats * share.pairs
        held = mixer.schedule.num_entries if share.entries is None else len(share.entries)
        entries += kind.repeats * held
    return pairs, entries


def draw_load(config: RunConfig) -> Figure | None:
    """Bars of every rank of the model-parallel group; None for a net that one rank holds."""
    if config.parallel.offset * config.parallel.tensor == 1:
        return None
    loads = rank_loads(config)
    figure = Figure(figsize=(8.4, 1.0 + 0.2 * len(loads)))
    for axis, title, values in zip(
        figure.subplots(1, 3, sharey=True), _TITLES, zip(*loads, strict=True), strict=True
    ):
        axis.barh(range(len(loads)), values, color="0.75", edgecolor="black", linewidth=0.5)
        axis.set_title(title)
    figure.axes[0].set_ylim(len(loads) - 0.5, -0.5)
    figure.axes[0].set_ylabel("rank")
    figure.suptitle("planned load of the ranks", fontsize=9)
    return figure
