"""Prints the paper's nets and the cluster that each needs (`translution plan --table`)."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from models import GPTConfig, ModelConfig, ViTConfig
from parallel.mesh import Mesh
from parallel.planner.layers import LayerKinds
from parallel.planner.recommend import Cluster, trains
from parallel.planner.units import size_text

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"depth": 6, "width": 192, "mlp": 768},
    "mini": {"depth": 12, "width": 192, "mlp": 768},
    "small": {"depth": 12, "width": 384, "mlp": 1536},
    "base": {"depth": 12, "width": 768, "mlp": 3072},
    "large": {"depth": 24, "width": 1024, "mlp": 4096},
}
MIXERS: dict[str, dict[str, Any]] = {
    "self-attention": {"kind": "attention"},
    "α-Translution, rank 8": {"kind": "translution", "rank": 8},
    "Translution": {"kind": "translution"},
}
PATCHES, TOKENS = (56, 32, 16), (160, 1024)
STATE_BYTES = 16  # per parameter: weight, gradient, two moments and, with bf16, the master copy
_MOST_NODES = 64
_WIDTH = 140


class Row(NamedTuple):
    """One net: parameters, bytes of states, and the fewest devices (None: more than 64 nodes)."""

    net: str
    mixer: str
    parameters: int
    state_bytes: int
    devices: int | None


def rows(cluster: Cluster) -> Iterator[Row]:
    """All nets; `cluster` gives the devices of a node and their memory."""
    for net, config in _nets():
        for mixer, options in MIXERS.items():
            heads = config.width // 64
            full = {**options, "heads": heads, "head_dim": 64}
            kinds = LayerKinds(type(config).model_validate(config.model_dump() | {"mixer": full}))
            parameters = sum(kinds.held(Mesh()).values())
            yield Row(net, mixer, parameters, STATE_BYTES * parameters, smallest(kinds, cluster))


def smallest(net: LayerKinds, cluster: Cluster) -> int | None:
    """The fewest devices, of one node or of whole nodes, that train the net in bf16, one sample each."""
    counts = [n for n in (1, 2, 4) if n < cluster.devices] + [
        cluster.devices * nodes for nodes in range(1, _MOST_NODES + 1)
    ]
    states = STATE_BYTES * sum(net.held(Mesh()).values())
    for count in counts:
        if count * cluster.memory < states:
            continue
        devices = min(count, cluster.devices)
        if trains(net, "bf16", dataclasses.replace(cluster, nodes=count // devices, devices=devices)):
            return count
    return None


def show(cluster: Cluster, as_json: bool) -> None:
    """Prints the table, or its rows as JSON."""
    if as_json:
        print(json.dumps([row._asdict() for row in rows(cluster)], indent=2))
        return
    title = (
        f"Parameters, bytes of weights, gradients and Adam states, and the fewest devices of "
        f"{size_text(cluster.memory)} that train each"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("net", no_wrap=True)
    for mixer in MIXERS:
        table.add_column(f"{mixer}\nparameters", justify="right", no_wrap=True)
        table.add_column("\nstates", justify="right", no_wrap=True)
        table.add_column("\ndevices", justify="right", no_wrap=True)
    cells: dict[str, list[str]] = {}
    for row in rows(cluster):
        count = size_text(row.parameters, "").replace("G", "B")
        cells.setdefault(row.net, []).extend(
            [count, size_text(row.state_bytes), _devices(row.devices, cluster)]
        )
    for place, (net, line) in enumerate(cells.items(), 1):
        last = place % len(PATCHES) == 0 if net.startswith("ViT") else place % len(TOKENS) == 1
        table.add_row(net, *line, end_section=last)
    Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False).print(table)


def _devices(count: int | None, cluster: Cluster) -> str:
    if count is None:
        return f"> {_MOST_NODES} × {cluster.devices}"
    nodes = count // cluster.devices
    return str(count) if nodes <= 1 else f"{nodes} × {cluster.devices}"


def _nets() -> Iterator[tuple[str, ModelConfig]]:
    for name, size in SIZES.items():
        for patch in PATCHES:
            yield f"ViT {name}/{patch}", ViTConfig.model_validate({"patch_size": patch, **size})
    for name, size in SIZES.items():
        for tokens in TOKENS:
            yield f"GPT {name}-{tokens}", GPTConfig.model_validate({"tokens": tokens, **size})
