"""Engines: what owns net and optimizer, and turns micro-batches into optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine.gradients import average_gradients, counted, gradient_norm
from parallel.engine.optimizer import OptimizerConfig, build_optimizer, learning_rate
from parallel.mesh import Mesh

Precision = Literal["fp32", "bf16"]
BatchT = TypeVar("BatchT")
MOMENTS = ("exp_avg", "exp_avg_sq")


class StepResult(NamedTuple):
    """One optimizer step: mean loss and gradient norm before clipping, scalars on the device.

    Nothing here has waited for the device; reading the numbers does.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float


class Engine(Protocol):
    """Trains this process's part of a net.

    `mesh.data_rank` of `mesh.data` tells which share of each global batch this process is fed. Every
    method but check_state is collective: all ranks call the same in the same order.
    """

    model: nn.Module
    mesh: Mesh
    device: torch.device
    steps_done: int

    @property
    def parameters(self) -> int:
        """The number of trained parameters of the whole net."""
        ...

    def step(
        self,
        micro_batches: Iterable[BatchT],
        accumulate: int,
        loss: Callable[[nn.Module, BatchT], Tensor],
    ) -> StepResult:
        """One optimizer step over `accumulate` micro-batches of equal size.

        `loss(model, batch)` is the mean loss of a micro-batch.
        """
        ...

    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        """`sums(model, batch)` without gradients and in evaluation mode."""
        ...

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of this model rank: steps_done, and of each parameter held its
        weight and moments in float32, by name; the same for either engine. Under ZeRO only the first
        replica has parameters."""
        ...

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError when names or shapes are not those of what `state` gives here."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over a state that was checked; its tensors may be on another device."""
        ...


class TorchEngine:
    """Plain torch: one process, or several with data, offset and tensor axes."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        device: torch.device,
        precision: Precision = "fp32",
        mesh: Mesh | None = None,
    ) -> None:
        self.model = model.to(device)
        self.config = config
        self.device = device
        self.precision = precision
        self.mesh = mesh or Mesh()
        self.optimizer = build_optimizer(self.model, config)
        self.steps_done = 0

    @property
    def parameters(self) -> int:
        return count_parameters(self.model, self.mesh)

    def step(
        self,
        micro_batches: Iterable[BatchT],
        accumulate: int,
        loss: Callable[[nn.Module, BatchT], Tensor],
    ) -> StepResult:
        self.model.train()
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            with self._autocast():
                part = loss(self.model, batch) / accumulate
            part.backward()
            total += part.detach()
        trained = list(self.model.parameters())
        average_gradients(trained, self.mesh)
        norm = gradient_norm(trained, self.mesh)
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(trained, self.config.clip, norm)
        lr = learning_rate(self.steps_done, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return StepResult(mean_over_data(total, self.mesh), norm, lr)

    @torch.no_grad()
    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        self.model.eval()
        with self._autocast():
            return sums(self.model, batch)

    def state(self) -> dict[str, Any]:
        named = self.model.named_parameters()
        parameters = {name: parameter_state(p, self.optimizer) for name, p in named}
        return {"parameters": parameters, "steps_done": self.steps_done}

    def check_state(self, state: dict[str, Any]) -> None:
        check_shapes(state["parameters"], {name: p.shape for name, p in self.model.named_parameters()})

    def load_state(self, state: dict[str, Any]) -> None:
        named = dict(self.model.named_parameters())
        self.steps_done = state["steps_done"]
        saved = {p: state["parameters"][name] for name, p in named.items()}
        load_parameter_states(saved, self.optimizer, self.steps_done)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def count_parameters(model: nn.Module, mesh: Mesh) -> int:
    """The parameters of the whole net, each counted once over the ranks that hold it."""
    # ds_numel is the size of a parameter that ZeRO-3 has taken apart.
    own = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if counted(p, mesh))
    group = mesh.group("model")
    if group is None:
        return own
    total = torch.tensor(own, device=next(model.parameters()).device)
    dist.all_reduce(total, group=group)
    return int(total)


def mean_over_data(number: Tensor, mesh: Mesh) -> Tensor:
    """The mean of a scalar over the data axis."""
    group = mesh.group("data")
    if group is None:
        return number
    number = number / mesh.data
    dist.all_reduce(number, group=group)
    return number


def parameter_state(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weight and moments of a parameter that the optimizer holds as it is; no moments yet are zeros."""
    moments = optimizer.state.get(parameter) or dict.fromkeys(MOMENTS, torch.zeros_like(parameter))
    return {"weight": parameter.detach(), **{m: moments[m] for m in MOMENTS}}


@torch.no_grad()
def load_parameter_states(
    saved: dict[nn.Parameter, dict[str, Tensor]], optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """Puts back what parameter_state gave, as it is after `steps` steps."""
    for parameter, tensors in saved.items():
        parameter.copy_(tensors["weight"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(steps), device=parameter.device),
            **{m: torch.empty_like(parameter).copy_(tensors[m]) for m in MOMENTS},
        }


def check_shapes(saved: dict[str, dict[str, Tensor]], own: dict[str, torch.Size]) -> None:
    """Raises ValueError, naming the first, unless saved parameters have our names and shapes."""
    odd = sorted(set(saved) ^ set(own))
    if odd:
        raise ValueError(
            f"parameter {odd[0]} is only in {'the checkpoint' if odd[0] in saved else 'the net'}"
        )
    for name, shape in own.items():
        if saved[name]["weight"].shape != shape:
            found = tuple(saved[name]["weight"].shape)
            raise ValueError(f"parameter {name} is {found} in the checkpoint, {tuple(shape)} here")
