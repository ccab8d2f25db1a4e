"""DeepSpeed's JSON of a run: what follows from our config, its sizes, and the user's own keys."""

from __future__ import annotations

import functools
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from parallel.engine.interface import Precision
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import ParallelConfig

# Enough to fill a link between nodes; DeepSpeed's own 500 M of float32 would be a buffer of 2 GB.
BUCKET = 50_000_000
# ZeRO-3 updates so many numbers of a rank at once: 400 MB of temporaries. DeepSpeed's is 1 G.
SUB_GROUP = 100_000_000

# Keys that follow from ours, and ours.
_DERIVED = {
    "train_batch_size": "train.batch",
    "train_micro_batch_size_per_gpu": "train.batch and train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_clipping": "train.clip",
    "optimizer": "train.lr, train.betas, …",
    "scheduler": "train.lr, train.warmup_steps, …",
    "bf16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "parallel.gradients",
    "communication_data_type": "parallel.gradients",
    "zero_optimization.stage": "parallel.zero",
    "zero_optimization.offload_optimizer.device": "parallel.offload_optimizer",
    "zero_optimization.cpu_offload": "parallel.offload_optimizer",
    "zero_force_ds_cpu_optimizer": "parallel.offload_optimizer",
    "zero_allow_untested_optimizer": "nothing: the optimizer is always torch's AdamW",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel_size": "parallel.offset",
    "activation_checkpointing": "parallel.activations",
}


class ZeroSizes(NamedTuple):
    """Numbers, not bytes.

    bucket      gradients reduced in one collective
    sub_group   ZeRO-3: what a rank updates at once
    prefetch    ZeRO-3: weights gathered ahead of their use
    live        ZeRO-3: weights gathered beyond which nothing is gathered ahead
    """

    bucket: int
    sub_group: int
    prefetch: int
    live: int


_ZERO3 = {
    "sub_group": "sub_group_size",
    "prefetch": "stage3_prefetch_bucket_size",
    "live": "stage3_max_live_parameters",
}


def zero_sizes(parallel: ParallelConfig, numbers: int, layer: int) -> ZeroSizes:
    """Sizes for a rank's net of so many parameters before ZeRO divides them, `layer` of them in the largest
    layer: the next layer is gathered while one computes. `parallel.deepspeed` overrides each."""
    bucket = max(2, min(BUCKET, numbers + numbers % 2))
    sizes = ZeroSizes(bucket, SUB_GROUP, layer, 2 * layer)
    given = parallel.deepspeed.get("zero_optimization", {})
    names = {"bucket": "reduce_bucket_size", **_ZERO3}
    values = {
        ours: given.get(theirs, given.get(theirs.removeprefix("stage3_"))) for ours, theirs in names.items()
    }
    return sizes._replace(**{ours: int(float(value)) for ours, value in values.items() if value is not None})


def deepspeed_settings(
    config: OptimizerConfig,
    parallel: ParallelConfig,
    precision: Precision,
    micro_batch: int,
    accumulate: int,
    sizes: ZeroSizes,
) -> dict[str, Any]:
    """DeepSpeed's JSON for this run; `sizes` are `zero_sizes` of the net."""
    zero: dict[str, Any] = {"stage": parallel.zero}
    if parallel.zero:
        zero |= {
            "overlap_comm": True,
            "reduce_bucket_size": sizes.bucket,
            "allgather_bucket_size": sizes.bucket,
        }
    if parallel.zero == 3:
        # A gathered bank is freed as soon as its layer is done.
        zero |= {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}
        zero |= {theirs: getattr(sizes, ours) for ours, theirs in _ZERO3.items()}
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.clip or 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }
    if precision == "bf16":
        settings["data_types"] = {"grad_accum_dtype": parallel.gradients}
        settings["communication_data_type"] = parallel.gradients
    return _merged(settings, _with_prefix(parallel.deepspeed))


def check_deepspeed_keys(parallel: ParallelConfig) -> None:
    """Raises UserError for a key of `parallel.deepspeed` that follows from another key of the config, and
    for one of its ZeRO section that DeepSpeed does not know or accept."""
    if parallel.deepspeed and parallel.engine != "deepspeed":
        raise UserError("parallel.deepspeed: has keys, but parallel.engine is torch; use engine: deepspeed")
    for key, value in _flat(parallel.deepspeed):
        for derived, ours in _DERIVED.items():
            if key == derived or key.startswith(f"{derived}."):
                raise UserError(f"parallel.deepspeed.{key}={value}: follows from {ours}; set that instead")
    zero = parallel.deepspeed.get("zero_optimization")
    if zero is None:
        return
    if not isinstance(zero, dict):
        raise UserError(f"parallel.deepspeed.zero_optimization={zero}: must be a section of keys")
    load_deepspeed()  # which takes a second
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig.model_validate(zero)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        why = "no key of DeepSpeed's" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"parallel.deepspeed.zero_optimization.{key}={first['input']}: {why}") from None


def load_deepspeed() -> types.ModuleType:
    """DeepSpeed, without its log messages and without compiling a kernel on the CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it even without a launcher
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning, "torch.distributed")
    import deepspeed

    deepspeed.logger.setLevel(logging.WARNING)
    # On the CPU its first collective would compile a shared-memory kernel that ZeRO never uses.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # pyright: ignore
    # For ZeRO-1 with bfloat16 weights and float32 gradients it would take its other optimizer, whose states
    # lie elsewhere; the one of all other cases can do it too.
    deepspeed.DeepSpeedEngine._do_optimizer_sanity_check = _one_optimizer(  # pyright: ignore
        deepspeed.DeepSpeedEngine._do_optimizer_sanity_check
    )
    return deepspeed


def _one_optimizer(choose: Callable[[Any, Any], str | None]) -> Callable[[Any, Any], str | None]:
    if hasattr(choose, "__wrapped__"):
        return choose

    @functools.wraps(choose)
    def chosen(engine: Any, optimizer: Any) -> str | None:
        found = choose(engine, optimizer)
        return "zero_optimization" if engine.zero_optimization() else found

    return chosen


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section."""
    both = {
        k: _merged(below[k], v)
        for k, v in above.items()
        if isinstance(v, dict) and isinstance(below.get(k), dict)
    }
    return {**below, **above, **both}


def _with_prefix(given: dict[str, Any]) -> dict[str, Any]:
    """ZeRO-3's sizes under the names that we give them."""
    long = {name.removeprefix("stage3_"): name for name in _ZERO3.values()}
    zero = {long.get(key, key): value for key, value in given.get("zero_optimization", {}).items()}
    return {**given, "zero_optimization": zero} if zero else given
