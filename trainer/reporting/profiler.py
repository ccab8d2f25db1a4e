"""A profile of a few training steps: a trace, the most expensive kernels, and on CUDA a memory snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.profiler import ProfilerActivity, profile

from parallel.processes import rank

_KERNELS = 10  # rows of the table


class ProfileConfig(BaseModel):
    """Which steps of which ranks to profile."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    first: int = Field(10, ge=1, alias="from", description="the first optimizer step of the profile")
    steps: int = Field(5, ge=1, description="how many steps")
    ranks: list[int] = Field([0], min_length=1, description="the ranks that write a profile")


class StepProfiler:
    """Profiles the configured steps of this rank into `folder`/rank-N."""

    def __init__(self, config: ProfileConfig | None, folder: Path, device: torch.device) -> None:
        self._config = config if config and rank() in config.ranks else None
        self._folder, self._device = folder / f"rank-{rank()}", device
        self._profile: profile | None = None

    def before_step(self, step: int) -> None:
        """Before optimizer step `step`, counted from 1: starts the profile if it begins there."""
        if self._config is None or step != self._config.first:
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history()
        self._profile = profile(activities=activities, profile_memory=True, record_shapes=True)
        self._profile.start()

    def after_step(self, step: int) -> str | None:
        """After optimizer step `step`: writes the profile if it ends there; returns a line about it."""
        config = self._config
        if self._profile is None or config is None or step < config.first + config.steps - 1:
            return None
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._folder / "trace.json.gz"))
        (self._folder / "kernels.txt").write_text(self._kernels())
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self._folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self._profile = None
        return f"profile of {config.steps} steps: {self._folder}"

    def _kernels(self) -> str:
        """A table of the most expensive kernels; on the CPU of the operators that took longest themselves."""
        assert self._profile is not None
        order = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        averages: Any = self._profile.key_averages()
        return averages.table(sort_by=order, row_limit=_KERNELS, max_name_column_width=60) + "\n"
