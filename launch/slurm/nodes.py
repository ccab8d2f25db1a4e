"""What a partition's nodes have, by Slurm: whether a job fits into it, and how much memory a process gets."""

import re
from typing import NamedTuple

from launch.slurm.allocation import Allocation, minutes
from launch.slurm.queries import slurm
from parallel.errors import UserError

_GPU_GB = {
    "b300": 270, "gb300": 270, "gb200": 186, "b200": 180, "h200": 141, "gh200": 96, "h100": 80, "h800": 80,
    "h20": 96, "a100": 40, "a800": 40, "v100": 16, "v100s": 32, "p100": 16, "p40": 24, "k80": 12, "t4": 16,
    "l4": 24, "l20": 48, "l40": 48, "l40s": 48, "a2": 16, "a10": 24, "a10g": 24, "a16": 16, "a30": 24,
    "a40": 48, "a4000": 16, "a4500": 20, "a5000": 24, "a5500": 24, "a6000": 48, "rtx6000ada": 48,
    "rtx5000ada": 32, "rtx8000": 48, "rtx6000": 24, "rtx5000": 16, "rtxpro6000": 96, "titanrtx": 24,
    "1080ti": 11, "2080ti": 11, "rtx2080ti": 11, "rtx3080": 10, "3090": 24, "rtx3090": 24, "rtx4080": 16,
    "4090": 24, "rtx4090": 24, "rtx5080": 16, "rtx5090": 32,
    "mi100": 32, "mi210": 64, "mi250": 64, "mi250x": 64, "mi300a": 128, "mi300x": 192, "mi325x": 256,
    "mi355x": 288,
}  # fmt: skip
"""Gigabytes of cards by the names that GRES types usually have; of the smaller one where two share a name. Of
cards with two chips, each of which is a device, those of one."""
_SLICE = re.compile(r"\d+g\.(\d+)gb")  # of a card that is divided: 3g.20gb
_IN_NAME = re.compile(r"(\d+) ?gb?\b")
_WITH_THE_HOSTS = "gh200"  # whose names say the host's memory: gh200_480gb


class Node(NamedTuple):
    """A group of alike nodes: `gb` of memory, cores, GPUs and the type of their GRES, features."""

    gb: float
    cores: int
    gpus: int
    gpu_type: str
    features: frozenset[str]


class Memory(NamedTuple):
    """Gigabytes that a process has on the best nodes and on the worst, and what says so."""

    most_gb: float
    least_gb: float
    source: str


def check_partition(partition: str | None, nodes: int, time: int) -> None:
    """Raise UserError if the partition does not exist, or is too small or its limit of minutes too low."""
    known: dict[str, dict[str, str]] = {}
    for line in slurm("scontrol", "--oneliner", "show", "partition").splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        known[fields.get("PartitionName", "")] = fields
    if partition is None:
        partition = next((name for name, fields in known.items() if fields.get("Default") == "YES"), None)
        if partition is None:
            raise UserError(f"this cluster has no default partition; give --partition: {', '.join(known)}")
    for name in partition.split(","):
        if name not in known:
            raise UserError(f"partition={name}: does not exist; this cluster has {', '.join(known)}")
    fields = known[partition.split(",")[0]]
    total = fields.get("TotalNodes", "")
    if total.isdigit() and nodes > int(total):
        raise UserError(f"nodes={nodes}: partition {partition} has {total}")
    limit = fields.get("MaxTime", "UNLIMITED")
    if limit not in ("UNLIMITED", "INFINITE") and time > minutes(limit):
        raise UserError(f"time={time} min: partition {partition} allows {minutes(limit)} min ({limit})")


def partition_nodes(partition: str | None, constraint: str | None = None) -> list[Node]:
    """The nodes of a partition, by default the cluster's own, that have the feature `constraint` if that is
    a plain one; [] where Slurm cannot be asked."""
    chosen = [f"--partition={partition}"] if partition else []
    try:
        text = slurm("sinfo", "--noheader", "-e", *chosen, "--format=%P|%m|%c|%G|%f")
    except UserError:
        return []
    nodes = []
    for line in text.splitlines():
        name, memory, cores, gres, features = (*line.strip().split("|"), "", "", "", "")[:5]
        if not memory.rstrip("+").isdigit() or not (partition or name.endswith("*")):
            continue
        named = frozenset(features.split(","))
        count = int(cores.rstrip("+")) if cores.rstrip("+").isdigit() else 0
        cards = re.findall(r"gpu:(?:([\w.+-]+):)?(\d+)", gres) or [("", "0")]  # a node may have several types
        gb = int(memory.rstrip("+")) * 2**20 / 1e9
        nodes += [Node(gb, count, int(gpus), kind, named) for kind, gpus in cards]
    plain = constraint and re.fullmatch(r"[\w.-]+", constraint)
    return [node for node in nodes if not plain or constraint in node.features]


def process_memory(allocation: Allocation, nodes: list[Node]) -> Memory | None:
    """The memory of a process: what the allocation says, else what Slurm says of the nodes; None if neither.

    With GPUs that of a card, by the name of its GRES type.
    """
    if allocation.gpus_per_node:
        if allocation.device_memory_gb:
            return Memory(allocation.device_memory_gb, allocation.device_memory_gb, "device_memory_gb")
        cards = {node.gpu_type: gpu_gb(node.gpu_type) for node in nodes if node.gpus}
        sizes = [size for size in cards.values() if size]
        if not sizes or len(sizes) < len(cards):
            return None
        return Memory(max(sizes), min(sizes), f"Slurm's GRES type {', '.join(sorted(cards))}")
    share = allocation.processes_per_node
    if allocation.mem_gb:
        return Memory(allocation.mem_gb / share, allocation.mem_gb / share, "mem_gb")
    if not nodes:
        return None
    sizes = [node.gb / share for node in nodes]
    return Memory(max(sizes), min(sizes), "what Slurm says of the nodes")


def gpu_gb(kind: str) -> float | None:
    """Gigabytes of a device by its GRES type, as in a100, h100_80gb or 3g.20gb; None if unknown."""
    name = kind.lower().replace("_", " ")
    if found := _SLICE.search(name):
        return float(found[1])
    if (found := _IN_NAME.search(name)) and _WITH_THE_HOSTS not in name:
        return float(found[1])
    words = re.findall("[a-z0-9]+", name)
    spans = [
        (n, first) for n in (3, 2, 1) for first in range(len(words) - n + 1)
    ]  # rtx 6000 ada before rtx 6000
    found_gb = (_GPU_GB.get("".join(words[first : first + n])) for n, first in spans)
    return next((float(each) for each in found_gb if each), None)
