"""The DeepSpeed engine: ZeRO 0–3 over the data axis, combined with our model-parallel axes.

DeepSpeed gets fairscale's groups as `mpu`, so it
partitions over the data axis only and sums norms over the model-parallel group.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from torch import Tensor, nn

from models.parts.block import Block
from parallel.engine.deepspeed_settings import deepspeed_settings, load_deepspeed, zero_sizes
from parallel.engine.gradients import gradient_norm, mean_over_data, mean_over_world, part_norms
from parallel.engine.interface import VOTES, BatchT, HeldState, Precision, StepResult
from parallel.engine.optimizer import (
    OptimizerConfig,
    build_optimizer,
    count_steps,
    learning_rate,
    set_aside_if_not_finite,
)
from parallel.engine.parameters import count_parameters, held_by_optimizer
from parallel.mesh import Mesh, ParallelConfig


class DeepSpeedEngine:
    """See `parallel.engine.interface.Engine`. bf16: bfloat16 weights with float32 master weights.

    micro_batch  samples of this rank in one forward pass
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        device: torch.device,
        precision: Precision,
        mesh: Mesh,
        parallel: ParallelConfig,
        micro_batch: int,
        accumulate: int,
    ) -> None:
        deepspeed = import_deepspeed()
        self.config, self.device, self.precision, self.mesh = config, device, precision, mesh
        self.accumulate = accumulate
        self.steps_done, self.report_parts = 0, False
        self._zero = parallel.zero
        self._adamw = build_optimizer(model, config)
        sizes = zero_sizes(parallel, _count(model), _largest_layer(model))
        self.net, self.optimizer, *_ = deepspeed.initialize(
            model=model.to(device) if parallel.zero < 3 else model,
            optimizer=self._adamw,
            config=deepspeed_settings(config, parallel, precision, micro_batch, accumulate, sizes),
            mpu=fairscale_groups,
        )
        self.model = self.net.module
        if precision == "bf16":
            self.model.register_forward_pre_hook(_images_to_bfloat16)
        self._losses: list[Tensor] = []  # of this step's micro-batches, each divided by accumulate

    @property
    def parameters(self) -> int:
        return count_parameters(self.model, self.mesh)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()  # the weights themselves are bfloat16

    def backward(self, loss: Tensor) -> None:
        self.net.backward(loss)  # which divides by its own number of accumulation steps
        self._losses.append(loss.detach() / self.accumulate)
        if len(self._losses) < self.accumulate:
            self.net.step()  # DeepSpeed counts micro-batches by this; no weight changes yet

    def update(self, votes: Tensor | None = None) -> StepResult:
        assert len(self._losses) == self.accumulate
        lr = learning_rate(self.steps_done, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = sum(self._losses, torch.zeros((), device=self.device))
        self._losses.clear()
        votes = torch.zeros(VOTES, device=self.device) if votes is None else votes
        parts = None
        if self._zero == 0:  # where DeepSpeed does not report the norm
            loss, votes = mean_over_data(loss, votes, self.mesh)
            norm, votes = gradient_norm(list(self.model.parameters()), votes, self.mesh)
            parts = part_norms(self.model, self.mesh) if self.report_parts else None
            set_aside_if_not_finite(self._adamw, loss, norm)
            self.net.step()
        else:  # where it reports an infinite norm for one that is not finite, and steps over the optimizer
            loss, votes = mean_over_world(loss, votes, self.mesh)
            set_aside_if_not_finite(self._adamw, loss)
            self.net.step()
            norm = torch.as_tensor(self.net.get_global_grad_norm(), device=self.device)
        self.steps_done += 1
        count_steps(self._adamw, self.steps_done)
        return StepResult(loss, norm.float(), lr, votes, parts)

    @torch.no_grad()
    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        self.net.eval()
        return sums(self.net, batch)

    def state(self, moments: bool = True) -> HeldState:
        if self._zero == 0:
            return held_by_optimizer(self.model, self.optimizer, moments)
        from parallel.engine import deepspeed_state  # which imports DeepSpeed

        return deepspeed_state.held(self.optimizer, self._zero, self.model, moments)

    def restored(self, steps_done: int) -> None:
        self.steps_done = steps_done
        count_steps(self._adamw, steps_done)
        if self._zero:
            from parallel.engine import deepspeed_state  # which imports DeepSpeed

            deepspeed_state.update_weights(self.optimizer, self._zero)


def import_deepspeed() -> types.ModuleType:
    """DeepSpeed, over the process groups that exist."""
    deepspeed = load_deepspeed()
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    return deepspeed


def _largest_layer(model: nn.Module) -> int:
    """Parameters of the largest layer; ds_numel is the whole size of one that ZeRO-3 has partitioned."""
    layers = (module for module in model.modules() if isinstance(module, Block))
    return max((_count(layer) for layer in layers), default=_count(model))


def _count(module: nn.Module) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


def zero3_partitioner(precision: Precision) -> Callable[[nn.Module], None]:
    """For parallelize(): a function that partitions a module's weights over the data axis right after
    they are drawn, so that a rank never holds more than one whole layer (ZeRO-3)."""
    deepspeed = import_deepspeed()

    def partition(module: nn.Module) -> None:
        for parameter in module.parameters():
            if precision == "bf16" and not hasattr(parameter, "ds_id"):  # not partitioned yet
                parameter.data = parameter.data.bfloat16()
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3},
            "bf16": {"enabled": precision == "bf16"},
        }
        deepspeed.zero.Init(
            module=module,
            data_parallel_group=fairscale_groups.get_data_parallel_group(),  # zero.Init ignores `mpu`
            config_dict_or_path=settings,
        )

    return partition


def _images_to_bfloat16(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook: images in the dtype of the weights. Token ids and targets stay as they are."""
    first, *rest = inputs
    return (first.bfloat16() if first.is_floating_point() else first, *rest)
