"""Recommends a mesh for a cluster: the fastest that fits, by a simple model of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models import ModelConfig
from models.ops.cards import CARDS, Card
from parallel.engine.torch_engine import Precision
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.layers import LayerKinds
from parallel.planner.memory import fullest_rank, step_memory
from parallel.planner.plan import Plan, layer_kinds, plan
from parallel.planner.seconds import compute_seconds
from parallel.planner.units import size_text


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `devices` each.

    memory     bytes of a device
    bandwidth  bytes per second from a device to others of its node
    network    the same to other nodes
    card       the device, for which bf16 runs are counted; None: their time is FLOPs over `speed`
    speed      FLOPs per second that a device reaches, for fp32 runs and where there is no card
    """

    nodes: int = 1
    devices: int = 8
    memory: float = 80e9
    bandwidth: float = 300e9
    network: float = 25e9
    card: Card | None = CARDS["h100"]
    speed: float = 150e12

    @property
    def world(self) -> int:
        return self.nodes * self.devices

    def axis_bandwidth(self, axis: str, mesh: Mesh) -> float:
        """Bandwidth of the slowest link that an axis uses; model-parallel ranks are neighbours."""
        ranks = mesh.world if axis == "data" else mesh.model
        return self.bandwidth if ranks <= self.devices else self.network

    def step_seconds(self, run: Plan) -> float:
        """Compute time plus communication time, nothing overlapped: good for comparing meshes. Nothing of it
        is measured."""
        card = self._card_for(run)
        if card is None:
            return self.least_seconds(run)
        return compute_seconds(run, card) + self._sending_seconds(run)

    def least_seconds(self, run: Plan) -> float:
        """The same with all FLOPs at the card's rate; takes no time to compute."""
        card, samples = self._card_for(run), run.batch // run.mesh.data
        rate = card.rate if card else self.speed
        return run.share.training * samples / rate + self._sending_seconds(run)

    def basis(self, run: Plan) -> str:
        """What the seconds of a step rest on."""
        card = self._card_for(run)
        if card is None:
            return f"from FLOPs at {size_text(self.speed, 'FLOP/s')}"
        return f"kernels counted for {card.name}, not measured"

    def _card_for(self, run: Plan) -> Card | None:
        return self.card if run.precision == "bf16" else None

    def _sending_seconds(self, run: Plan) -> float:
        seconds = 0.0
        for axis, sent in run.sent.items():
            seconds += sent / self.axis_bandwidth(axis, run.mesh)
        return seconds


def recommend(
    model: ModelConfig | LayerKinds,
    batch: int,
    accumulate: int,
    precision: Precision,
    cluster: Cluster,
) -> Plan | None:
    """The plan with the shortest step that fits the cluster, with at least `accumulate` micro-batches; a
    simpler one if it is at most a tenth slower; None if none fits, or if a mixer's cost is not known."""
    net = model if isinstance(model, LayerKinds) else layer_kinds(model)
    found = [
        fitting
        for mesh in meshes(net, cluster.world)
        for parallel in _settings(mesh, precision)
        if (
            fitting := _fewest_micro_batches(
                net, mesh, parallel, batch, accumulate, precision, cluster, False
            )
        )
    ]
    if net.not_planned:
        return None
    timed: list[tuple[float, Plan]] = []
    enough = float("inf")
    for run in sorted(found, key=cluster.least_seconds):
        if cluster.least_seconds(run) > enough:
            break
        run = _fewest_micro_batches(  # now by its kernels
            net, run.mesh, run.parallel, batch, run.accumulate, precision, cluster, True
        )
        if run is None:
            continue
        timed.append((cluster.step_seconds(run), run))
        enough = 1.1 * min(seconds for seconds, _ in timed)
    quick = [(seconds, run) for seconds, run in timed if seconds <= enough]
    return min(quick, key=lambda timed: (timed[1].mesh.tensor, timed[0]), default=(0, None))[1]


def trains(net: LayerKinds, precision: Precision, cluster: Cluster) -> bool:
    """Whether some mesh of the whole cluster can train the net at all, one sample at a time."""
    for mesh in meshes(net, cluster.world):
        place = fullest_rank(net, mesh)
        for parallel in list(_settings(mesh, precision))[::-1]:
            memory = step_memory(net, place, parallel, mesh.data, 1, precision, counted=False)
            if memory.needed <= cluster.memory:
                return True
    return False


def meshes(net: LayerKinds, world: int) -> Iterator[Mesh]:
    """All meshes of so many ranks over which the net divides."""
    for model in (n for n in range(1, world + 1) if world % n == 0):
        for tensor in (n for n in (1, 2, 4, 8, 16) if model % n == 0):
            mesh = Mesh(world // model, model // tensor, tensor)
            try:
                net.pieces(mesh)
            except UserError:
                continue
            yield mesh


def _settings(mesh: Mesh, precision: Precision) -> Iterator[ParallelConfig]:
    """From the quickest to the one that takes least memory."""
    own = ParallelConfig(offset=mesh.offset, tensor=mesh.tensor, data=mesh.data)
    engines: list[dict[str, object]] = [{}]
    if mesh.data > 1:
        engines += [{"engine": "deepspeed", "zero": zero} for zero in (1, 2, 3)]
    for engine in engines:
        for activations in ("none", "block"):
            yield own.model_copy(update={**engine, "activations": activations})


def _fewest_micro_batches(
    net: LayerKinds,
    mesh: Mesh,
    parallel: ParallelConfig,
    batch: int,
    accumulate: int,
    precision: Precision,
    cluster: Cluster,
    counted: bool,
) -> Plan | None:
    place = fullest_rank(net, mesh)
    while accumulate <= batch:
        if batch % (accumulate * mesh.data) == 0:
            memory = step_memory(net, place, parallel, batch, accumulate, precision, counted=counted)
            if memory.needed <= cluster.memory:
                return plan(net, parallel, mesh, batch, accumulate, precision, counted=counted)
        accumulate *= 2
    return None
