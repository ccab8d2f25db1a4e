"""Weights and moments of a ZeRO optimizer by parameter name, read out and put back.

DeepSpeed's own helpers serve reading; writing into a fresh optimizer, whose moments do not exist yet,
and into parts that are padded, they do not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from parallel.engine.torch_engine import MOMENTS


def read(zero: Any, stage: int, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The parameter's float32 weight and moments, whole; collective over the data axis."""
    if not _flat_states(zero, stage)[0]:
        _begin(zero, stage, steps=0)
    if stage < 3:
        _link(zero)
    weight = safe_get_full_fp32_param(parameter)
    moments = {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
    assert weight is not None
    return {"weight": weight, **moments}  # pyright: ignore[reportReturnType]


@torch.no_grad()
def write(zero: Any, stage: int, saved: dict[nn.Parameter, dict[str, Tensor]], steps: int) -> None:
    """Puts weights and moments back into this rank's parts, as they are after `steps` steps."""
    _begin(zero, stage, steps)
    if stage < 3:
        _link(zero)
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


def _flats(zero: Any, stage: int) -> list[Tensor]:
    return zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat


def _flat_states(zero: Any, stage: int) -> list[dict[str, Tensor]]:
    return [zero.optimizer.state.get(flat, {}) for flat in _flats(zero, stage)]


def _begin(zero: Any, stage: int, steps: int) -> None:
    for flat in _flats(zero, stage):
        zero.optimizer.state[flat] = {
            "step": torch.tensor(float(steps), device=flat.device),
            **{m: torch.zeros_like(flat) for m in MOMENTS},
        }


def _link(zero: Any) -> None:
    """Joins parameters to their moments anew: of several groups DeepSpeed joins only the first."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()
