"""What `translution verify` compares: a net, and the layouts on which it can train."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from models import ModelConfig, build_model
from parallel.engine.build import check_trainable
from parallel.errors import UserError
from parallel.mesh import ParallelConfig, mesh_of
from trainer.config.run import load_config
from trainer.verify import verify
from trainer.verify.nets import net_named

# Per process and parameter: weight, gradient, moments, and the reference's weight.
_BYTES = 28


@dataclass
class Comparison:
    """`skipped` says which layouts the net does not divide over, and why."""

    title: str
    model: ModelConfig
    layouts: list[ParallelConfig]
    processes: int
    skipped: list[str]


def choose_layouts(
    config: str | None, overrides: list[str], processes: int, specs: list[str], net: str = "translution"
) -> Comparison:
    """The comparison that a command line asks for, checked.

    `specs` are layouts such as "offset=2,tensor=1,zero=3"; without any, every layout that the net allows.
    `net` names one of nets.py, for use without a config. Raises UserError for an impossible layout, an
    unknown net, and a net too large for this machine.
    """
    if config is None:
        if overrides:
            raise UserError(f"{overrides[0]}: overrides need a config; name a YAML file")
        name, model = f"a small net ({net})", net_named(net)
    else:
        loaded = load_config(config, overrides)
        # No dropout: it would draw other numbers for another share of the batch.
        name, model = loaded.name, loaded.model.model_copy(update={"dropout": 0.0})
    _check_size(model, processes)
    title = f"{name}: {verify.STEPS} steps on one process and on {processes}"
    comparison = Comparison(title, model, [parse_layout(spec) for spec in specs], processes, [])
    if specs:
        for each in comparison.layouts:
            _check(model, each, processes)
        return comparison
    for each in verify.layouts(processes):
        try:
            _check(model, each, processes)
            comparison.layouts.append(each)
        except UserError as error:
            comparison.skipped.append(str(error))
    comparison.skipped = list(dict.fromkeys(comparison.skipped))
    return comparison


def run_comparison(comparison: Comparison, seconds: float) -> list[verify.LayoutResult]:
    """Train and compare; raises UserError when the processes hang."""
    count, processes = len(comparison.layouts), comparison.processes
    print(f"training {count} layouts in {processes} processes …", file=sys.stderr, flush=True)
    try:
        return verify.verify(comparison.model, comparison.layouts, processes, seconds)
    except TimeoutError as error:
        raise UserError(f"--limit {seconds:g} s: {error}; they hang, or need a higher --limit") from None


def parse_layout(spec: str) -> ParallelConfig:
    """The layout of "offset=2,tensor=1,zero=3"; a ZeRO stage implies the DeepSpeed engine."""
    values: dict[str, Any] = {}
    for part in spec.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--layouts {spec}: {part!r} is not key=value, as in offset=2,zero=3")
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
        raise UserError(f"--layouts {spec}: {key}={values.get(key)}: {why}") from None


def _check(model: ModelConfig, parallel: ParallelConfig, processes: int) -> None:
    mesh = mesh_of(parallel, processes)
    try:
        check_trainable(model, parallel, mesh, batch=verify.BATCH, accumulate=verify.ACCUMULATE)
    except UserError as error:
        raise UserError(f"{mesh}: {error}") from None


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
