"""The float32 weights and moments that a ZeRO optimizer of DeepSpeed holds on this rank, by parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parallel.engine.interface import MOMENTS, WEIGHT, HeldState
from parallel.engine.parameters import held_buffers

_Part = tuple[tuple[int, int], Tensor, int]
"""Of a parameter: the run of its elements, the flat tensor that they lie in, and where they begin there."""


def held(zero: Any, stage: int, model: nn.Module, moments: bool) -> HeldState:
    """This rank's partition; moments that the optimizer lacks begin as zeros."""
    if moments:
        _begin_moments(zero, stage)
    runs, tensors = {}, {kind: {} for kind in (WEIGHT, *MOMENTS) if moments or kind == WEIGHT}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise NotImplementedError(f"{name}: a parameter that is not trained has no place in ZeRO's state")
        part = _partition(zero, parameter) if stage == 3 else _fragment(zero, parameter)
        if part is None:
            runs[name] = (0, 0)
            continue
        (start, stop), flat, at = part
        runs[name] = start, stop
        for kind, own in tensors.items():
            source = flat if kind == WEIGHT else zero.optimizer.state[flat][kind]
            own[name] = source.detach()[at : at + stop - start]
    return HeldState(runs, tensors, held_buffers(model), replicated=False)


@torch.no_grad()
def update_weights(zero: Any, stage: int) -> None:
    """The weights that the net computes with, from the float32 ones; collective over the data axis."""
    if stage < 3:
        zero.update_lp_params()
        return
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)


def _fragment(zero: Any, parameter: Any) -> _Part | None:
    """ZeRO 1 and 2: a partition is a run of the flattened net."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    return (there.start, there.start + there.numel), flat, here.start


def _partition(zero: Any, parameter: Any) -> _Part | None:
    """ZeRO 3: each parameter is cut into runs of equal length; the last may be shorter, or empty."""
    group, at, length = zero.grad_position[zero.get_param_id(parameter)]
    first = length * zero._get_param_partition_rank(parameter)
    run = min(first, parameter.ds_numel), min(first + length, parameter.ds_numel)
    return (run, zero.fp32_partitioned_groups_flat[group], at) if run[0] < run[1] else None


def _flat_weights(zero: Any, stage: int) -> list[Tensor]:
    return zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat


def _begin_moments(zero: Any, stage: int) -> None:
    for flat in _flat_weights(zero, stage):
        if not zero.optimizer.state.get(flat):
            zero.optimizer.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
