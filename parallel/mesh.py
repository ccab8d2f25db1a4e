"""The mesh of processes: world = data × offset × tensor (DESIGN section 4).

The model-parallel group (offset × tensor) is a run of neighbouring ranks, fairscale's; inside it the
tensor axis runs fastest. All ranks of such a group see the same samples.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from pydantic import BaseModel, ConfigDict, Field

from parallel.errors import UserError
from parallel.processes import TIMEOUT

Group = dist.ProcessGroup | None  # None where the axis has one process


class ParallelConfig(BaseModel):
    """The `parallel` section: the mesh, the engine, and what is saved of activations.

    offset      ranks over which every bank's residue classes are dealt
    tensor      ranks over which heads and vocabulary are split
    data        replicas of the model-parallel group; auto: as many as there are processes for
    engine      torch, or deepspeed (which alone has zero > 0 and offloading)
    zero        DeepSpeed's ZeRO stage: optimizer states (1), gradients (2), weights (3) over data
    activations none: all are saved; block: each layer saves its input and recomputes the rest;
                block_cpu: the same, kept in host memory; operator: only the mixer recomputes
    """

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)
    data: int | Literal["auto"] = "auto"
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: int = Field(default=0, ge=0, le=3)
    offload_optimizer: bool = False
    activations: Literal["none", "block", "block_cpu", "operator"] = "none"

    def check_precision(self, precision: str) -> None:
        """Raises UserError where the engine cannot train in this precision."""
        if self.engine == "deepspeed" and precision == "bf16" and self.zero == 0:
            raise UserError(
                "precision=bf16 with parallel.zero=0: DeepSpeed trains that wrongly; use parallel.zero=1"
            )

    def check(self, world: int | None) -> None:
        """Raises UserError where this cannot be run, on `world` processes if that is known."""
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
    """The sizes of the axes, this process's place, and the groups it talks to.

    Without groups it is a place on a mesh that need not exist: enough to count and to plan.
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
        """The processes along "data", "offset", "tensor" or "model" through this one."""
        return self.groups.get(axis)

    def __str__(self) -> str:
        return f"data {self.data} × offset {self.offset} × tensor {self.tensor}"


def mesh_of(config: ParallelConfig, world: int, rank: int = 0) -> Mesh:
    """The mesh that `world` processes make of the config; raises UserError where it does not factor."""
    config.check(world)
    return Mesh(world // (config.offset * config.tensor), config.offset, config.tensor, rank)


def join_mesh(config: ParallelConfig, settings: Mapping[str, str] | None = None) -> Mesh:
    """Every process's first collective act: the groups of the mesh, on an initialised torch.distributed.

    A process on its own has no groups. Raises UserError if the mesh does not factor or if the ranks
    differ in a value of their `settings`.
    """
    if not dist.is_initialized():
        return mesh_of(config, 1)
    _agree(settings or {})
    mesh = mesh_of(config, dist.get_world_size(), dist.get_rank())
    if not fairscale_groups.model_parallel_is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            fairscale_groups.initialize_model_parallel(mesh.model)
    groups: dict[str, Group] = {
        "data": fairscale_groups.get_data_parallel_group() if mesh.data > 1 else None,
        "model": fairscale_groups.get_model_parallel_group() if mesh.model > 1 else None,
    }
    for axis, stride, size in (("tensor", 1, mesh.tensor), ("offset", mesh.tensor, mesh.offset)):
        groups[axis] = _axis_group(mesh, stride, size)
    return Mesh(mesh.data, mesh.offset, mesh.tensor, mesh.rank, groups)


def forget_mesh() -> None:
    """Ends the groups of a mesh, so that the same processes can form another."""
    if fairscale_groups.model_parallel_is_initialized():
        fairscale_groups.destroy_model_parallel()


def _axis_group(mesh: Mesh, stride: int, size: int) -> Group:
    """Groups of `size` ranks, `stride` apart, inside each model-parallel group; all ranks make all."""
    if size == 1:
        return None
    own: object = None
    for first in range(mesh.world):
        position = first % mesh.model // stride % size
        if position == 0:
            ranks = [first + stride * i for i in range(size)]
            group = dist.new_group(ranks, TIMEOUT)
            own = group if mesh.rank in ranks else own
    assert isinstance(own, dist.ProcessGroup)
    return own


def _agree(settings: Mapping[str, str]) -> None:
    everyone: list[Mapping[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, settings)
    odd = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if not odd:
        return
    if dist.get_rank():
        raise SystemExit(2)  # the first rank says it
    theirs, ours = everyone[odd[0]], everyone[0]
    key = next(k for k in [*ours, *theirs] if theirs.get(k) != ours.get(k))
    raise UserError(
        f"ranks disagree on the config: {key} is {theirs.get(key, 'not set')} on rank {odd[0]}, "
        f"{ours.get(key, 'not set')} on rank 0"
    )
