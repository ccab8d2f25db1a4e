"""The engine: owns model and optimizer, and turns micro-batches into optimizer steps."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from parallel.optimizer import OptimizerConfig, build_optimizer, learning_rate

Precision = Literal["fp32", "bf16"]
BatchT = TypeVar("BatchT")


class StepResult(NamedTuple):
    """One optimizer step: mean loss and gradient norm before clipping, scalars on the device.

    Nothing here has waited for the device; reading the numbers does.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float


class TorchEngine:
    """One process, plain torch.

    `data_rank` of `data_world` tells which share of each global batch this process is fed.
    """

    data_rank = 0
    data_world = 1

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model.to(device)
        self.config = config
        self.device = device
        self.precision = precision
        self.optimizer = build_optimizer(self.model, config)
        self.steps_done = 0

    @property
    def parameters(self) -> int:
        """The number of trained parameters of the whole net."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(
        self,
        micro_batches: Iterable[BatchT],
        accumulate: int,
        loss: Callable[[nn.Module, BatchT], Tensor],
    ) -> StepResult:
        """One optimizer step over `accumulate` micro-batches of equal size.

        `loss(model, batch)` is the mean loss of a micro-batch.
        """
        self.model.train()
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            with self._autocast():
                part = loss(self.model, batch) / accumulate
            part.backward()
            total += part.detach()
        limit = float("inf") if self.config.clip is None else self.config.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        lr = learning_rate(self.steps_done, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return StepResult(total, norm.detach(), lr)

    @torch.no_grad()
    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        """`sums(model, batch)` without gradients and in evaluation mode."""
        self.model.eval()
        with self._autocast():
            return sums(self.model, batch)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of this engine."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; raises RuntimeError or ValueError when shapes differ."""
        self.model.load_state_dict(state["model"])
        # The groups' settings are the config's, which an override may have changed on resume.
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self._groups()]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self._groups(), settings, strict=True):
            group.update(own)
        self.steps_done = state["steps_done"]

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
