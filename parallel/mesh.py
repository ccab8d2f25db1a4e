"""The mesh of processes: world = data × offset × tensor.

A model-parallel group (offset × tensor; fairscale's) is a block of consecutive ranks, in which the tensor
axis varies fastest. All ranks of such a group see the same samples.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from pydantic import BaseModel, ConfigDict, Field

from parallel.errors import UserError

Group = dist.ProcessGroup | None  # None if the axis has one process


class ParallelConfig(BaseModel):
    """The `parallel` section: the mesh, the engine, and which activations are saved.

    offset      ranks that share each bank's residue classes
    tensor      ranks that share heads; feed-forward and vocabulary are split over offset × tensor
    data        replicas of the model-parallel group; auto: all remaining processes
    engine      torch, or deepspeed; only deepspeed has zero > 0 and offloading
    zero        DeepSpeed's ZeRO stage: optimizer states (1), gradients (2), weights (3) over data
    gradients   DeepSpeed with precision=bf16: in what gradients add up and are sent
    deepspeed   further keys of DeepSpeed's JSON; they may not contradict what follows from the config
    activations  none: save all; block: save each layer's input, recompute the rest;
                block_cpu: the same, saved in host memory; operator: recompute only the mixer
    timeout     seconds after which a collective has lost a rank
    offload_optimizer  DeepSpeed: moments and their update in host memory
    """

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)
    data: int | Literal["auto"] = "auto"
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: int = Field(default=0, ge=0, le=3)
    offload_optimizer: bool = False
    gradients: Literal["fp32", "bf16"] = "fp32"
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    activations: Literal["none", "block", "block_cpu", "operator"] = "none"
    timeout: float = Field(default=600, gt=0, allow_inf_nan=False)

    def check_precision(self, precision: str) -> None:
        """Raise UserError if the engine cannot train in this precision."""
        if self.engine == "deepspeed" and precision == "bf16" and self.zero == 0:
            raise UserError(
                "precision=bf16 with parallel.zero=0: DeepSpeed trains that wrongly; use parallel.zero=1"
            )

    def check(self, world: int | None) -> None:
        """Raise UserError if this cannot run, or cannot run on `world` processes."""
        if self.engine == "torch" and self.zero:
            raise UserError(
                f"parallel.zero={self.zero}: the torch engine has no ZeRO; use parallel.engine=deepspeed"
            )
        if self.engine == "torch" and self.offload_optimizer:
            raise UserError("parallel.offload_optimizer=true: only parallel.engine=deepspeed offloads")
        if self.offload_optimizer and not self.zero:
            raise UserError(
                "parallel.offload_optimizer=true with parallel.zero=0: use parallel.zero=1 or more"
            )
        if self.engine == "torch" and self.gradients != "fp32":
            raise UserError(
                f"parallel.gradients={self.gradients}: the torch engine adds them up in float32; use "
                "parallel.engine=deepspeed"
            )
        if world is None:
            return
        model = self.offset * self.tensor
        if world % model:
            raise UserError(
                f"parallel.offset={self.offset} × parallel.tensor={self.tensor} = {model} does not divide "
                f"the {world} processes"
            )
        if self.data not in ("auto", world // model):
            raise UserError(
                f"parallel.data={self.data} × offset {self.offset} × tensor {self.tensor} are not the "
                f"{world} processes; data={world // model} or auto fits"
            )


@dataclass(frozen=True)
class Mesh:
    """The sizes of the axes, this process's rank, and its process groups.

    Without groups it describes a mesh that need not exist, which is enough for planning.
    """

    data: int = 1
    offset: int = 1
    tensor: int = 1
    rank: int = 0
    groups: dict[str, Group] = field(default_factory=dict, compare=False)

    @property
    def world(self) -> int:
        return self.data * self.offset * self.tensor

    @property
    def model(self) -> int:
        """The size of the model-parallel group."""
        return self.offset * self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.model

    @property
    def model_rank(self) -> int:
        return self.rank % self.model

    @property
    def offset_rank(self) -> int:
        return self.model_rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.model_rank % self.tensor

    def group(self, axis: str) -> Group:
        """This process's group along "data", "offset", "tensor" or "model"."""
        return self.groups.get(axis)

    def __str__(self) -> str:
        return f"data {self.data} × offset {self.offset} × tensor {self.tensor}"


def mesh_of(config: ParallelConfig, world: int, rank: int = 0) -> Mesh:
    """The config's mesh over `world` processes, without groups; raises UserError if it does not factor."""
    config.check(world)
    return Mesh(world // (config.offset * config.tensor), config.offset, config.tensor, rank)


def join_mesh(config: ParallelConfig, settings: Mapping[str, str] | None = None) -> Mesh:
    """Collective: create the mesh's process groups on an initialised torch.distributed.

    A single process has no groups. Raises UserError if the mesh does not factor or if `settings` differ
    between ranks.
    """
    if not dist.is_initialized():
        return mesh_of(config, 1)
    _check_same_settings(settings or {})
    mesh = mesh_of(config, dist.get_world_size(), dist.get_rank())
    if not fairscale_groups.model_parallel_is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its groups
            fairscale_groups.initialize_model_parallel(mesh.model)
    groups: dict[str, Group] = {
        "data": fairscale_groups.get_data_parallel_group() if mesh.data > 1 else None,
        "model": fairscale_groups.get_model_parallel_group() if mesh.model > 1 else None,
    }
    for axis, stride, size in (("tensor", 1, mesh.tensor), ("offset", mesh.tensor, mesh.offset)):
        # The same ranks are one group: every group is a communicator with buffers of its own.
        if size == mesh.model:
            groups[axis] = groups["model"]
        else:
            groups[axis] = _axis_group(mesh, stride, size, timedelta(seconds=config.timeout))
    return Mesh(mesh.data, mesh.offset, mesh.tensor, mesh.rank, groups)


def forget_mesh() -> None:
    """Destroy the mesh's groups, so that the same processes can form another mesh."""
    if fairscale_groups.model_parallel_is_initialized():
        fairscale_groups.destroy_model_parallel()


def _axis_group(mesh: Mesh, stride: int, size: int, timeout: timedelta) -> Group:
    """Create groups of `size` ranks, `stride` apart, in each model-parallel group; returns this rank's.

    Every rank has to create every group.
    """
    if size == 1:
        return None
    own: object = None
    for first in range(mesh.world):
        position = first % mesh.model // stride % size
        if position == 0:
            ranks = [first + stride * i for i in range(size)]
            group = dist.new_group(ranks, timeout)
            own = group if mesh.rank in ranks else own
    assert isinstance(own, dist.ProcessGroup)
    return own


def _check_same_settings(settings: Mapping[str, str]) -> None:
    everyone: list[Mapping[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, settings)
    odd = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if not odd:
        return
    if dist.get_rank():
        raise SystemExit(2)  # rank 0 reports it
    theirs, ours = everyone[odd[0]], everyone[0]
    key = next(k for k in [*ours, *theirs] if theirs.get(k) != ours.get(k))
    raise UserError(
        f"ranks disagree on the config: {key} is {theirs.get(key, 'not set')} on rank {odd[0]}, "
        f"{ours.get(key, 'not set')} on rank 0"
    )
