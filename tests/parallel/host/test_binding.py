"""Binding a process to the cores next to its device."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parallel.host.binding import bind_to_cores
from parallel.spawn import run_processes


def bind(number_of_cores: int) -> tuple[int, int]:
    cores = bind_to_cores(torch.device("cpu"))
    assert os.sched_getaffinity(0) == cores
    return len(cores), min(cores)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_ranks_of_a_host_share_its_cores():
    cores = len(os.sched_getaffinity(0))
    (first, low), (second, high) = run_processes(bind, 2, cores, seconds=60)
    assert first + second == cores
    assert low < high


def test_cores_that_srun_gave_each_rank_are_not_divided_again(monkeypatch: pytest.MonkeyPatch):
    """Variables as Slurm 22.05 sets them with TaskPlugin=task/affinity; a launcher in one task divides."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {4, 5, 6, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: None)
    variables = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    slurms = {"SLURM_CPU_BIND_LIST": "0x0F,0xF0", "SLURM_STEP_NUM_TASKS": "2"}
    for name, value in (variables | slurms).items():
        monkeypatch.setenv(name, value)
    assert bind_to_cores(torch.device("cpu")) == {4, 5, 6, 7}
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert bind_to_cores(torch.device("cpu")) == {6, 7}
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_CPU_BIND_LIST", "0xFF")  # both may run on the same
    assert bind_to_cores(torch.device("cpu")) == {6, 7}


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two NUMA nodes, a card beside the second; what is bound goes to `bound`."""
    card = SimpleNamespace(pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    folder = tmp_path / "bus/pci/devices/0000:c1:00.0"
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text("1\n")
    for node, cores in ((0, "0-3,8-11"), (1, "4-7,12-15")):
        (tmp_path / f"devices/system/node/node{node}").mkdir(parents=True)
        (tmp_path / f"devices/system/node/node{node}/cpulist").write_text(cores + "\n")
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: None)
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "bound"),
    [
        (range(16), {4, 5, 6, 7, 12, 13, 14, 15}),
        (range(6), {4, 5}),  # the launcher gave the process these
        (range(4), {0, 1, 2, 3}),  # none of the card's: as it was
    ],
)
def test_a_process_runs_beside_its_card(system: Path, monkeypatch, allowed: range, bound: set[int]):
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: set(allowed))
    assert bind_to_cores(torch.device("cuda", 0), system) == bound


def test_nothing_changes_where_the_node_is_unknown(system: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 5})
    (system / "bus/pci/devices/0000:c1:00.0/numa_node").write_text("-1\n")
    assert bind_to_cores(torch.device("cuda", 0), system) == {0, 5}
