"""Reads and writes the weights and moments of a ZeRO optimizer by parameter.

DeepSpeed has helpers for reading. They cannot write into a fresh optimizer, whose moments do not exist
yet, nor into padded partitions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from parallel.engine.parameters import MOMENTS


def read(zero: Any, stage: int, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The parameter's whole float32 weight and moments; collective over the data axis."""
    if not _optimizer_states(zero, stage)[0]:
        _create_moments(zero, stage, steps=0)
    if stage < 3:
        _link_moments(zero)
    weight = safe_get_full_fp32_param(parameter)
    moments = {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
    assert weight is not None
    return {"weight": weight, **moments}  # pyright: ignore[reportReturnType]


@torch.no_grad()
def write(zero: Any, stage: int, saved: dict[nn.Parameter, dict[str, Tensor]], steps: int) -> None:
    """Writes weights and moments into this rank's partitions; `steps` becomes the step count."""
    _create_moments(zero, stage, steps)
    if stage < 3:
        _link_moments(zero)
    for parameter, tensors in saved.items():
        for key, name in ((None, "weight"), *((m, m) for m in MOMENTS)):
            if stage < 3:
                parameter.set_full_hp_param(tensors[name], key)  # pyright: ignore
            else:
                part, _ = zero._get_fp32_opt_state_partition(
                    parameter, release_swap_buffers=False, optim_state_key=key
                )
                first = part.numel() * zero._get_param_partition_rank(parameter)
                flat = F.pad(
                    tensors[name].flatten(), (0, max(0, first + part.numel() - tensors[name].numel()))
                )
                part.copy_(flat[first : first + part.numel()])
    if stage < 3:
        zero.update_lp_params()
        return
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)


def _flat_weights(zero: Any, stage: int) -> list[Tensor]:
    return zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat


def _optimizer_states(zero: Any, stage: int) -> list[dict[str, Tensor]]:
    return [zero.optimizer.state.get(flat, {}) for flat in _flat_weights(zero, stage)]


def _create_moments(zero: Any, stage: int, steps: int) -> None:
    for flat in _flat_weights(zero, stage):
        zero.optimizer.state[flat] = {
            "step": torch.tensor(float(steps), device=flat.device),
            **{m: torch.zeros_like(flat) for m in MOMENTS},
        }


def _link_moments(zero: Any) -> None:
    """Links parameters to their moments again: DeepSpeed links only the first of several groups."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()
