"""Names the device, the driver and the versions that a result was obtained with."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from parallel.errors import UserError


def check_device(name: str) -> torch.device:
    """The device of `--device`; raises UserError where this machine has none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """The card, its driver, and the versions of torch and triton."""
    try:
        triton = f"triton {version('triton')}"
    except PackageNotFoundError:
        triton = "no triton"
    if device.type != "cuda":
        return f"the CPU, torch {torch.__version__}, {triton}"
    return f"{torch.cuda.get_device_name(device)}, driver {_driver()}, torch {torch.__version__}, {triton}"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.splitlines()[0].strip() if said.strip() else "unknown"
