"""The options that describe a cluster, of every command that plans for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from parallel.planner.recommend import Cluster

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ: parallel.offset=8"),
]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Number of machines; by default as many as the mesh needs.")
]
DevicesPerNode = Annotated[int, typer.Option(min=1, help="Devices per machine, one process each.")]
CardName = Annotated[
    str, typer.Option(help="a100, h100, h200 or b200: whose kernels, and time of a step, are counted.")
]
DeviceMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory of one device; default: the card's.")
]
Bandwidth = Annotated[
    str, typer.Option(metavar="SIZE", help="Bandwidth of a device inside its machine, per second.")
]
Network = Annotated[
    str, typer.Option(metavar="SIZE", help="Bandwidth of a device to other machines, per second.")
]
NVLINK, NETWORK = "300GB", "25GB"  # defaults of the bandwidths


def cluster_of(
    nodes: int | None, devices: int, card: str, memory: str | None, bandwidth: str, network: str
) -> Cluster:
    """The cluster that these options describe, of one node if no number is given; raises UserError."""
    from models.ops.cards import CARDS
    from parallel.errors import UserError
    from parallel.planner.recommend import Cluster
    from parallel.planner.units import parse_size

    if card not in CARDS:
        raise UserError(f"--card {card}: one of {', '.join(CARDS)} is needed")
    size = parse_size(memory, "--memory") if memory else CARDS[card].memory
    speeds = parse_size(bandwidth, "--bandwidth"), parse_size(network, "--network")
    return Cluster(nodes or 1, devices, size, *speeds, CARDS[card])
