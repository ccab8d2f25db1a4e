"""What `translution verify` compares: which net, and on which layouts it can be trained."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from models import ModelConfig, ViTConfig, build_model
from parallel.errors import UserError
from parallel.mesh import ParallelConfig, mesh_of
from parallel.sharding.layout import shards
from trainer.config.run import load_config
from trainer.verify import verify

# 5 × 5 tokens and a class token; heads, feed-forward and classes divide by up to eight ranks.
SMALL: dict[str, Any] = {
    "image_size": 20,
    "patch_size": 4,
    "channels": 1,
    "classes": 10,
    "width": 32,
    "depth": 2,
    "mlp": 64,
    "mixer": {"kind": "translution", "heads": 2, "head_dim": 16},
}
# Of weight, gradient, moments and the copy compared with, per process and parameter.
_BYTES = 28


@dataclass
class Plan:
    """`left_out` tells the layouts that the net does not divide over, and why."""

    title: str
    model: ModelConfig
    layouts: list[ParallelConfig]
    processes: int
    left_out: list[str]


def make(config: str | None, overrides: list[str], processes: int, words: list[str]) -> Plan:
    """The comparison that a command line asks for, checked.

    `words` are layouts as in "offset=2,tensor=1,zero=3"; none: every layout that the net allows.
    Raises UserError for a layout that cannot be, and for a net too large for this machine.
    """
    if config is None:
        if overrides:
            raise UserError(f"{overrides[0]}: settings need a config to differ from; name a YAML file")
        name, model = "a small ViT", ViTConfig(**SMALL)
    else:
        loaded = load_config(config, overrides)
        # Dropout would draw other numbers for other shares of a batch.
        name, model = loaded.name, loaded.model.model_copy(update={"dropout": 0.0})
    _check_size(model, processes)
    title = f"{name}: {verify.STEPS} steps on one process and on {processes}"
    if words:
        chosen = [layout(word) for word in words]
        for each in chosen:
            _check(model, each, processes)
        return Plan(title, model, chosen, processes, [])
    plan = Plan(title, model, [], processes, [])
    for each in verify.layouts(processes):
        try:
            _check(model, each, processes)
            plan.layouts.append(each)
        except UserError as error:
            plan.left_out.append(str(error))
    plan.left_out = list(dict.fromkeys(plan.left_out))
    return plan


def run(plan: Plan, seconds: float) -> list[verify.Row]:
    """Train and compare; raises UserError when the processes hang."""
    count = len(plan.layouts)
    print(f"training {count} layouts in {plan.processes} processes …", file=sys.stderr, flush=True)
    try:
        return verify.verify(plan.model, plan.layouts, plan.processes, seconds)
    except TimeoutError as error:
        raise UserError(f"--limit {seconds:g} s: {error}; a hang, or a longer limit is needed") from None


def layout(word: str) -> ParallelConfig:
    """The layout of "offset=2,tensor=1,zero=3"; a ZeRO stage means the DeepSpeed engine."""
    values: dict[str, Any] = {}
    for part in word.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--layouts {word}: {part!r} is not key=value, as in offset=2,zero=3")
        values[key.strip()] = yaml.safe_load(value)
    if "zero" in values:
        values.setdefault("engine", "deepspeed")
    try:
        return ParallelConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][:1]))
        allowed = ", ".join(ParallelConfig.model_fields)
        why = f"one of {allowed} is needed" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"--layouts {word}: {key}={values.get(key)}: {why}") from None


def _check(model: ModelConfig, parallel: ParallelConfig, processes: int) -> None:
    mesh = mesh_of(parallel, processes)
    if verify.BATCH % (verify.ACCUMULATE * mesh.data):
        raise UserError(f"{mesh}: {verify.BATCH} samples in {verify.ACCUMULATE} parts do not divide by data")
    try:
        with torch.device("meta"):
            shards(build_model(model), mesh)
    except UserError as error:
        raise UserError(f"{mesh}: {error}") from None
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def _check_size(model: ModelConfig, processes: int) -> None:
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in build_model(model).parameters())
    except ValueError as error:
        raise UserError(f"model: {error}") from None
    need, have = count * _BYTES * processes, _free_bytes()
    if need > have:
        raise UserError(
            f"model: {count:,} parameters in each of {processes} processes need about {need / 1e9:.1f} GB, "
            f"{have / 1e9:.1f} GB are free; verify with a smaller model.width or a coarser grid"
        )


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
