"""What a rehearsed rank holds and does, beside what the planner says of the same rank."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from models import ModelConfig, build_model
from models.mixers.interface import Mixer
from parallel.mesh import Mesh
from parallel.planner.plan import Plan
from parallel.sharding.layout import shards
from parallel.traffic_counter import Traffic

NAMED = 0.05  # differences above this part of the plan's figure are named


class Figure(NamedTuple):
    """One figure of a rank: rehearsed, and planned (None where the planner says nothing of it)."""

    name: str
    rehearsed: float
    planned: float | None

    @property
    def difference(self) -> float | None:
        """As a part of the plan's."""
        if self.planned is None or self.planned == self.rehearsed:
            return None if self.planned is None else 0.0
        return self.rehearsed / self.planned - 1 if self.planned else math.inf


def figures(
    held: dict[str, tuple[int, ...]], peak: int, flops: int, kernels: int, sent: Traffic, plan: Plan
) -> list[Figure]:
    """A rank's figures beside the plan's of the same rank; FLOPs and payloads of one optimizer step."""
    planned_flops = plan.share.training * plan.micro_batch * plan.accumulate
    found = [
        Figure("parameters", sum(map(math.prod, held.values())), sum(plan.held.values())),
        Figure("peak bytes", peak, plan.memory.peak),
        Figure("FLOPs", flops, planned_flops),
        Figure("kernels", kernels, None),
    ]
    planned = plan.traffic.by_group(plan.mesh)
    for key in sorted(sent.payload.keys() | planned.payload.keys()):
        axis, operation = key
        if axis != "world":  # DeepSpeed's own checks
            found.append(Figure(f"{axis} {operation}", sent.payload[key], planned.payload[key]))
    return found


def wrongly_held(model: ModelConfig, mesh: Mesh, held: dict[str, tuple[int, ...]]) -> list[str]:
    """A line for each parameter that a rank does not hold as the mesh wants it, and for each bank that no one
    has declared, so that every rank holds it whole."""
    with torch.device("meta"):
        net = build_model(model)
    lines = []
    for name, shard in shards(net, mesh).items():
        if name in held and held[name] != shard.shape:
            lines.append(f"{name} is {list(held[name])}, where this rank's part is {list(shard.shape)}")
    return lines + (_undeclared_banks(net, mesh) if mesh.offset > 1 else [])


def _undeclared_banks(net: nn.Module, mesh: Mesh) -> list[str]:
    lines = []
    for path, mixer in net.named_modules():
        if not isinstance(mixer, Mixer) or mixer.schedule is None:
            continue
        entries, axes = mixer.schedule.grid.num_entries, mixer.axes()
        for name, parameter in mixer.named_parameters():
            declared = "entry" in axes.get(name, {}).values()
            if not declared and parameter.dim() > 2 and parameter.shape[0] == entries:
                lines.append(
                    f"{path}.{name} {list(parameter.shape)} is a bank that is not sharded: each of "
                    f"{mesh.offset} offset ranks holds all {entries} entries; axes() must say {{0: 'entry'}}"
                )
    return lines
