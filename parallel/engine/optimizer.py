"""AdamW, with no decay on norms, biases and embeddings; warm-up and cosine schedule."""

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """How weights are updated, and for how many steps.

    steps         optimizer steps
    lr            learning rate after the warm-up
    min_lr        learning rate of the last step
    warmup_steps  steps of the linear warm-up
    weight_decay  of matrices and banks; norms, biases and embeddings have none
    betas         decay of AdamW's two moments, per step
    eps           added to the root of the second moment
    clip          greatest norm of the gradient; null: no clipping
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=300, ge=1)
    lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    min_lr: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    clip: float | None = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "OptimizerConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        return self


def learning_rate(step: int, config: OptimizerConfig) -> float:
    """Linear warm-up to `lr` at step `warmup_steps`, then a cosine to `min_lr` at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    fall = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.min_lr + (config.lr - config.min_lr) * fall


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: matrices and banks with weight decay, everything else without.

    No decay: parameters of at most one dimension (norms, biases) and those named by
    `model.no_decay()` (class token, position embeddings), if the model has that method.
    """
    # A parameter that ZeRO-3 has partitioned keeps its whole shape as ds_shape.
    tokens: set[str] = model.no_decay() if hasattr(model, "no_decay") else set()  # pyright: ignore
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name: len(getattr(p, "ds_shape", p.shape)) > 1 and name not in tokens for name, p in named}
    decay = [p for name, p in named if decays[name]]
    rest = [p for name, p in named if not decays[name]]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0}]
    return [group for group in groups if group["params"]]


def set_aside_if_not_finite(optimizer: torch.optim.AdamW, *numbers: Tensor) -> None:
    """The optimizer's next step changes nothing when a number is not finite; does not wait for the device.

    Fused AdamW looks at `found_inf` on the device, as torch's gradient scaler has it do.
    """
    bad = ~torch.stack([number.float() for number in numbers]).isfinite().all()
    optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]


def count_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Set AdamW's own count of steps, which leaves out those that changed nothing, as a resumed run does."""
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    if counts:
        torch._foreach_zero_(counts)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(counts, float(steps))  # pyright: ignore[reportPrivateImportUsage]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups above; the engine sets the learning rate before every step."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
