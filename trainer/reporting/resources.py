"""Predicted and measured memory and traffic of a run, and how well it uses its devices."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from parallel.mesh import Mesh
from parallel.planner.plan import plan
from parallel.traffic_counter import counted_traffic
from trainer.config.run import RunConfig
from trainer.reporting.utilisation import peak_rate

_COUNTED = 3  # the step whose traffic is counted


class Resources:
    """Peak memory of this process, the bytes it sends in an optimizer step, by axis, and utilisation.

    Traffic is counted in this process's third step: in the first two, DeepSpeed also communicates
    to trace the net.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, device: torch.device) -> None:
        self._mesh, self._device = mesh, device
        self._plan = plan(
            config.model,
            config.parallel,
            mesh,
            config.train.batch,
            config.train.accumulate,
            config.precision,
            cpu=device.type == "cpu",
        )
        self.remarks = self._plan.remarks  # replicated mixers, and what could not be planned
        self._sample_flops = self._plan.sample.model
        self._peak_rate = peak_rate(device) * mesh.world
        self._steps = 0
        self._sent: dict[str, int] | None = None

    @property
    def counts_next(self) -> bool:
        """Whether the traffic of the next step is counted, which so may send nothing for reports."""
        return self._steps + 1 == _COUNTED

    @contextmanager
    def watch_step(self) -> Iterator[None]:
        """Around every optimizer step."""
        self._steps += 1
        if self._steps != _COUNTED:
            yield
            return
        with counted_traffic(self._mesh) as traffic:
            yield
        self._sent = traffic.sent(self._mesh)

    def utilisation(self, samples_per_second: float) -> float:
        """Model FLOPs utilisation: training FLOPs without recomputation over those of all devices."""
        return samples_per_second * self._sample_flops / self._peak_rate

    def peak_bytes(self) -> int:
        """The most memory so far: of tensors on a CUDA device, of the whole process on the CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def result(self) -> dict[str, Any]:
        """Predictions and measurements for result.json; null where nothing was measured."""
        peak = self.peak_bytes() if self._device.type == "cuda" else None
        return {
            "flops_per_sample": self._sample_flops,
            "peak_bytes": self.peak_bytes(),
            "predicted": self._plan.logged(),
            "measured": {"peak_bytes": peak, "bytes_sent": self._sent},
        }
