"""A job that asked for GPUs does not train on the CPU without a word."""

import socket
from pathlib import Path

import pytest

from launch.slurm.job.devices import check_devices
from parallel.errors import UserError


@pytest.fixture
def auto(config_file: Path) -> Path:
    config_file.write_text(config_file.read_text().replace("device: cpu", "device: auto"))
    return config_file


def test_gpus_that_torch_does_not_see_are_an_error_that_names_the_host(
    auto: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        UserError, match=rf"^{socket.gethostname()}: gpus_per_node=2, but torch .* sees no CUDA"
    ):
        check_devices(2, auto)
    check_devices(None, auto)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_devices(2, auto)


def test_a_config_for_the_cpu_may_ask_for_gpus(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_devices(2, config_file)
