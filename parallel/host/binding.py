"""Binding a process to the cores next to its device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_SYSTEM = Path("/sys")


def bind_to_cores(device: torch.device, system: Path = _SYSTEM) -> set[int]:
    """Run this process, its threads and the workers it will start on some of its cores only; returns them.

    With a CUDA device these are the cores of the card's NUMA node, with the CPU this process's share of the
    host's cores (LOCAL_RANK of LOCAL_WORLD_SIZE). A launcher's own binding stays: cores outside it are not
    used. Where nothing is known of the card's node, or none of its cores is allowed, nothing changes.
    """
    allowed = os.sched_getaffinity(0)
    near = _card_cores(device, system) if device.type == "cuda" else _share(sorted(allowed))
    cores = near & allowed or allowed
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)
    return cores


def _share(cores: list[int]) -> set[int]:
    if _bound_by_srun():
        return set(cores)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")  # DeepSpeed's name
    return set(cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks])


def _bound_by_srun() -> bool:
    """Whether srun, which started every rank, has given each cores of its own."""
    masks = {mask for mask in os.environ.get("SLURM_CPU_BIND_LIST", "").split(",") if mask}
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return len(masks) >= ranks and os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ.get("WORLD_SIZE")


def _card_cores(device: torch.device, system: Path) -> set[int]:
    card = torch.cuda.get_device_properties(device)
    address = f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0"
    try:
        node = int((system / "bus/pci/devices" / address / "numa_node").read_text())
        listed = (system / f"devices/system/node/node{node}/cpulist").read_text()
    except (OSError, ValueError):
        return set()
    return _core_numbers(listed)


def _core_numbers(listed: str) -> set[int]:
    """The numbers in the kernel's notation: 0-3,8-11."""
    ranges = [each.split("-") for each in listed.strip().split(",") if each]
    return {
        core for first, *last in ranges for core in range(int(first), int(last[0] if last else first) + 1)
    }
