"""The plain torch engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.engine.gradients import GradientSum, gradient_norm, mean_over_data, part_norms
from parallel.engine.interface import VOTES, BatchT, HeldState, Precision, StepResult
from parallel.engine.optimizer import (
    OptimizerConfig,
    build_optimizer,
    count_steps,
    learning_rate,
    set_aside_if_not_finite,
)
from parallel.engine.parameters import count_parameters, held_by_optimizer
from parallel.mesh import Mesh


class TorchEngine:
    """See `parallel.engine.interface.Engine`. bf16 computes under autocast; weights stay float32."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        device: torch.device,
        precision: Precision = "fp32",
        mesh: Mesh | None = None,
        accumulate: int = 1,
    ) -> None:
        self.model = self.net = model.to(device)
        self.config = config
        self.device = device
        self.precision = precision
        self.mesh = mesh or Mesh()
        self.accumulate = accumulate
        self.optimizer = build_optimizer(self.model, config)
        self.steps_done, self.report_parts = 0, False
        self._losses: list[Tensor] = []  # of this step's micro-batches, each divided by accumulate
        group = self.mesh.group("data")
        self._sum = GradientSum(list(self.model.parameters()), group) if group else None

    @property
    def parameters(self) -> int:
        return count_parameters(self.model, self.mesh)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def backward(self, loss: Tensor) -> None:
        if self._sum is not None:
            self._sum.before_backward(last=len(self._losses) + 1 == self.accumulate)
        (loss / (self.accumulate * self.mesh.data)).backward()
        self._losses.append(loss.detach() / self.accumulate)

    def update(self, votes: Tensor | None = None) -> StepResult:
        assert len(self._losses) == self.accumulate
        loss = sum(self._losses, torch.zeros((), device=self.device))
        self._losses.clear()
        votes = torch.zeros(VOTES, device=self.device) if votes is None else votes
        loss, votes = mean_over_data(loss, votes, self.mesh)
        trained = list(self.model.parameters())
        if self._sum is not None:
            self._sum.finish()
        norm, votes = gradient_norm(trained, votes, self.mesh)
        parts = part_norms(self.model, self.mesh) if self.report_parts else None
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(trained, self.config.clip, norm)
        lr = learning_rate(self.steps_done, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        set_aside_if_not_finite(self.optimizer, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        count_steps(self.optimizer, self.steps_done)
        return StepResult(loss, norm, lr, votes, parts)

    @torch.no_grad()
    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        self.net.eval()
        with self.autocast():
            return sums(self.net, batch)

    def state(self, moments: bool = True) -> HeldState:
        return held_by_optimizer(self.model, self.optimizer, moments)

    def restored(self, steps_done: int) -> None:
        self.steps_done = steps_done
        count_steps(self.optimizer, steps_done)
