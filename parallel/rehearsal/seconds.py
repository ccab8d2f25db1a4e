"""How long a rehearsed step takes on a cluster, and what it waits for: counted, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from parallel.mesh import Mesh
from parallel.planner.recommend import Cluster
from parallel.rehearsal.collectives import Collective, traffic_of
from parallel.rehearsal.recorder import Work

LATENCY = 20e-6  # seconds of a collective that sends nothing to speak of


class StepSeconds(NamedTuple):
    """Seconds of one optimizer step.

    compute   of kernels on the device
    launch    in which the device waits for the host to launch the next
    nvlink    in which it waits for collectives inside a node
    network   in which it waits for collectives between nodes
    """

    compute: float
    launch: float
    nvlink: float
    network: float

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def binds(self) -> str:
        """What takes most of it."""
        return max(self._fields, key=lambda name: getattr(self, name))


def step_seconds(work: Work, collectives: Sequence[Collective], mesh: Mesh, cluster: Cluster) -> StepSeconds:
    """Of a rank that does this work and these collectives; a collective costs what is left of it when the
    engine has launched the kernels that do not wait for it."""
    waits = {"nvlink": 0.0, "network": 0.0}
    for each in collectives:
        axis = each.axis if each.axis in ("data", "offset", "tensor", "model") else "data"
        inside = (mesh.world if axis == "data" else mesh.model) <= cluster.devices
        sent = sum(traffic_of([each]).sent(mesh).values())
        seconds = LATENCY + sent / cluster.axis_bandwidth(axis, mesh)
        waits["nvlink" if inside else "network"] += max(0.0, seconds - each.hidden)
    return StepSeconds(work.seconds, work.launching, waits["nvlink"], waits["network"])
