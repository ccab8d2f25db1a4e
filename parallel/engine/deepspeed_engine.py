"""The DeepSpeed engine: ZeRO 0–3 over the data axis beside our model-parallel axes.

DeepSpeed's JSON is derived here, never written by hand. It receives fairscale's groups as `mpu`, so it
partitions over the data axis only, and sums norms over the model-parallel group.
"""

from __future__ import annotations

import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from torch import Tensor, nn

from parallel.engine.gradients import gradient_norm
from parallel.engine.optimizer import OptimizerConfig, build_optimizer, learning_rate
from parallel.engine.torch_engine import (
    BatchT,
    Precision,
    StepResult,
    check_shapes,
    count_parameters,
    load_parameter_states,
    mean_over_data,
    parameter_state,
)
from parallel.mesh import Mesh, ParallelConfig

SUB_GROUP_SIZE = 1_000_000  # numbers of a rank that ZeRO-3 updates at once


class DeepSpeedEngine:
    """See parallel.engine.Engine. bf16 holds weights in bfloat16 with float32 masters."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        device: torch.device,
        precision: Precision,
        mesh: Mesh,
        parallel: ParallelConfig,
        batch: int,
        accumulate: int,
    ) -> None:
        parallel.check_precision(precision)
        deepspeed = import_deepspeed()
        self.config, self.device, self.precision, self.mesh = config, device, precision, mesh
        self.steps_done = 0
        self._zero = parallel.zero
        settings = deepspeed_settings(config, parallel, precision, mesh, batch, accumulate)
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=model.to(device) if parallel.zero < 3 else model,
            optimizer=build_optimizer(model, config),
            config=settings,
            mpu=fairscale_groups,
        )
        self.model = self._engine.module
        if precision == "bf16":
            self.model.register_forward_pre_hook(_in_bfloat16)

    @property
    def parameters(self) -> int:
        return count_parameters(self.model, self.mesh)

    def step(
        self,
        micro_batches: Iterable[BatchT],
        accumulate: int,
        loss: Callable[[nn.Module, BatchT], Tensor],
    ) -> StepResult:
        self._engine.train()
        total = torch.zeros((), device=self.device)
        lr = learning_rate(self.steps_done, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = total
        for number, batch in enumerate(micro_batches, 1):
            part = loss(self._engine, batch)
            self._engine.backward(part)
            total += part.detach() / accumulate
            if number == accumulate and self._zero == 0:  # DeepSpeed tells no norm then
                norm = gradient_norm(list(self.model.parameters()), self.mesh)
            self._engine.step()
        if self._zero:
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device)
        self.steps_done += 1
        return StepResult(mean_over_data(total, self.mesh), norm.float(), lr)

    @torch.no_grad()
    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        self._engine.eval()
        return sums(self._engine, batch)

    def state(self) -> dict[str, Any]:
        named = dict(self.model.named_parameters())
        if self._zero:
            from parallel.engine import deepspeed_state  # which imports DeepSpeed

            # One at a time: whole states of all parameters at once are what ZeRO is there to avoid.
            parameters = {}
            for name, parameter in named.items():
                read = deepspeed_state.read(self.optimizer, self._zero, parameter)
                if self.mesh.data_rank == 0:
                    parameters[name] = {key: tensor.cpu() for key, tensor in read.items()}
        else:
            parameters = {n: parameter_state(p, self.optimizer) for n, p in named.items()}
        return {"parameters": parameters, "steps_done": self.steps_done}

    def check_state(self, state: dict[str, Any]) -> None:
        named = self.model.named_parameters()
        check_shapes(state["parameters"], {n: getattr(p, "ds_shape", p.shape) for n, p in named})

    def load_state(self, state: dict[str, Any]) -> None:
        named = dict(self.model.named_parameters())
        self.steps_done = state["steps_done"]
        saved = {p: state["parameters"][n] for n, p in named.items()}
        if self._zero:
            from parallel.engine import deepspeed_state  # which imports DeepSpeed

            deepspeed_state.write(self.optimizer, self._zero, saved, self.steps_done)
        else:
            load_parameter_states(saved, self.optimizer, self.steps_done)


def deepspeed_settings(
    config: OptimizerConfig,
    parallel: ParallelConfig,
    precision: Precision,
    mesh: Mesh,
    batch: int,
    accumulate: int,
) -> dict[str, Any]:
    """DeepSpeed's JSON for this run; `batch` is the global batch of one optimizer step."""
    zero: dict[str, Any] = {"stage": parallel.zero}
    if parallel.zero == 3:
        # A gathered bank is freed when its layer is done: little stays, nothing is fetched ahead.
        zero |= {
            "stage3_max_live_parameters": 1,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 500_000,
            "sub_group_size": SUB_GROUP_SIZE,
        }
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": batch // (accumulate * mesh.data),
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.clip or 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }


def import_deepspeed() -> types.ModuleType:
    """DeepSpeed without its greetings, and without the compiler run it makes on the CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls collectives by names that torch has begun to rename.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning, "torch.distributed")
    import deepspeed

    deepspeed.logger.setLevel(logging.WARNING)
    # On the CPU its first collective would compile a shared-memory kernel that ZeRO never uses.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # pyright: ignore
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    return deepspeed


def take_share(precision: Precision) -> Callable[[nn.Module], None]:
    """For parallelize(): partitions a module's weights over the data axis as soon as they are drawn, so
    that a rank never holds more than one layer whole (ZeRO-3)."""
    deepspeed = import_deepspeed()

    def take(module: nn.Module) -> None:
        for parameter in module.parameters():
            if precision == "bf16" and not hasattr(parameter, "ds_id"):  # not taken yet
                parameter.data = parameter.data.bfloat16()
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3},
            "bf16": {"enabled": precision == "bf16"},
        }
        deepspeed.zero.Init(
            module=module,
            data_parallel_group=fairscale_groups.get_data_parallel_group(),  # its `mpu` is ignored
            config_dict_or_path=settings,
        )

    return take


def _in_bfloat16(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images in the dtype of the weights that meet them; ids stay."""
    return tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)
