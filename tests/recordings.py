"""Recordings of other systems' public code (fixtures/relatives.npz), and what `build` gives for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.relatives import build

FILE = Path(__file__).parent / "fixtures" / "relatives.npz"
GROUPS = ("param", "buffer", "buffer_before", "grad", "cfg", "mid", "init", "grad_l2wrap", "loss_with_l2wrap")


class Recording:
    """One case of a system, by the names of tests/fixtures/SOURCE.md."""

    def __init__(self, name: str) -> None:
        self.system = name.split("/")[0]
        self.arrays: dict[str, Tensor] = {}
        self.cfg: dict[str, Any] = {}
        with np.load(FILE) as archive:
            for key in archive.files:
                if not key.startswith(f"{name}/"):
                    continue
                what = key.removeprefix(f"{name}/")
                if what.startswith("cfg/"):
                    self.cfg[what.removeprefix("cfg/")] = archive[key].tolist()
                else:
                    self.arrays[what] = torch.from_numpy(archive[key])
        assert self.arrays, f"no case {name} in {FILE.name}"

    def group(self, prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}/"
        return {key.removeprefix(start): t for key, t in self.arrays.items() if key.startswith(start)}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """What comes out; each has a gradient d… that comes in."""
        return {key: t for key, t in self.arrays.items() if f"d{key}" in self.arrays}

    @property
    def inputs(self) -> dict[str, Tensor]:
        apart = self.outputs.keys() | {f"d{key}" for key in self.outputs}
        return {
            key: t for key, t in self.arrays.items() if key.split("/")[0] not in GROUPS and key not in apart
        }


@cache
def cases(*systems: str) -> tuple[str, ...]:
    """The SYSTEM/CASE names of these systems."""
    with np.load(FILE) as archive:
        found = dict.fromkeys("/".join(key.split("/")[:2]) for key in archive.files)
    return tuple(name for name in found if name.split("/")[0] in systems)


def errors(name: str) -> dict[str, float]:
    """Largest error of every output and gradient of a case against its recording, relative to the largest
    recorded number (or to one, if that is less)."""
    recording = Recording(name)
    inputs = {key: t.clone().requires_grad_(t.is_floating_point()) for key, t in recording.inputs.items()}
    param = {key: t.clone().requires_grad_() for key, t in recording.group("param").items()}
    before = recording.group("buffer_before") or recording.group("buffer")
    buffer = {key: t.clone() for key, t in before.items()}
    found = build(recording.system, recording.cfg, param, buffer)(**inputs)
    assert found.keys() == recording.outputs.keys()
    given = {key: recording.arrays[f"d{key}"] for key in found}
    sum((found[key] * given[key]).sum() for key in found).backward()  # pyright: ignore
    result = {key: _error(found[key], whole) for key, whole in recording.outputs.items()}
    for key, whole in recording.group("grad").items():
        tensor = param[key.removeprefix("param/")] if key.startswith("param/") else inputs[key]
        result[f"grad/{key}"] = _error(tensor.grad if tensor.grad is not None else 0 * tensor, whole)
    for key, whole in recording.group("buffer").items():
        result[f"buffer/{key}"] = _error(buffer[key], whole)
    return result


def _error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1)).item()
