"""Which device a process uses, with a simulated CUDA."""

import os

import pytest
import torch

from parallel.errors import UserError
from parallel.processes import join_processes, own_device


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """Simulates CUDA: call it with the number of devices and this process's LOCAL_RANK."""

    def pretend(devices: int, local_rank: int | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        if local_rank is None:
            monkeypatch.delenv("LOCAL_RANK", raising=False)
        else:
            monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    return pretend


@pytest.mark.parametrize(
    ("devices", "local_rank", "own"), [(4, 0, 0), (4, 3, 3), (4, None, 0), (1, 0, 0), (1, 3, 0)]
)
def test_each_process_takes_the_device_of_its_local_rank_or_the_only_one_it_sees(
    cuda, devices, local_rank, own
):
    cuda(devices, local_rank)
    assert own_device() == torch.device("cuda", own)


def test_more_processes_than_devices_are_refused(cuda):
    cuda(2, 2)
    with pytest.raises(UserError, match="LOCAL_RANK=2: only 2 CUDA devices are visible"):
        own_device()


def test_without_cuda_the_device_is_the_cpu():
    assert own_device() == torch.device("cpu")


def test_the_default_device_is_set_before_processes_connect(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def connect(*arguments: object, **options: object) -> None:
        calls.append("connected")
        raise RuntimeError("nobody came")

    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", connect)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"cannot connect to the 2 processes .*: nobody came"):
        join_processes(torch.device("cuda", 1))
    assert calls == [torch.device("cuda", 1), "connected"]


def test_a_process_that_sees_only_its_own_device_tells_deepspeed_so(cuda, monkeypatch: pytest.MonkeyPatch):
    cuda(1, 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    join_processes(own_device())
    assert os.environ["LOCAL_RANK"] == "0"  # what DeepSpeed gives to set_device
