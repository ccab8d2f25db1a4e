"""What training asks of an engine, the owner of a net and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from parallel.errors import UserError
from parallel.mesh import Mesh

Precision = Literal["fp32", "bf16"]
BatchT = TypeVar("BatchT")


WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
VOTES = 5
"""Length of the vector in which every rank may tell the others something with a step's scalars."""


def micro_batch_size(batch: int, accumulate: int, data: int) -> int:
    """Samples of one micro-batch on one of `data` replicas, with `accumulate` micro-batches in a step.

    Raises UserError unless the global batch divides evenly.
    """
    if batch % (accumulate * data):
        raise UserError(
            f"train.batch={batch} is not divisible by train.accumulate={accumulate} × {data} data ranks"
        )
    return batch // (accumulate * data)


class StepResult(NamedTuple):
    """One optimizer step: mean loss and gradient norm before clipping, scalars on the device.

    When one of them is not finite, no weight or moment has changed, on any rank. `votes` are the sums over
    all ranks of what they gave to `update`, float32 [VOTES]; `part_norms` the norms of the gradients of
    models.parts.net.PARTS before clipping, where the engine reports them. Making a result does not wait for
    the device; reading its numbers does.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float
    votes: Tensor
    part_norms: Tensor | None = None


class HeldState(NamedTuple):
    """What this rank holds of a net in training: views of the engine's own memory.

    runs        by parameter: where in this mesh place's part of it, flattened, the rank's elements lie
    tensors     by kind (WEIGHT, MOMENTS) and parameter: these elements, flat; float32 masters of bfloat16
    buffers     the net's, the same on every rank
    replicated  whether the ranks of the data axis hold the same
    """

    runs: dict[str, tuple[int, int]]
    tensors: dict[str, dict[str, Tensor]]
    buffers: dict[str, Tensor]
    replicated: bool


class Engine(Protocol):
    """Trains this process's part of a net.

    A step is `accumulate` times forward (`net(inputs, targets)` under `autocast()`, which gives the mean
    loss) and `backward(loss)`, then one `update()`; the micro-batches are of equal size. `mesh.data_rank` of
    `mesh.data` says which share of each global batch this process gets. Calling the net, and every method
    but state, is collective: all ranks do the same in the same order.

    net     runs forward: the model, or DeepSpeed's wrapper of it
    model   holds the parameters
    report_parts   whether `update` reports `part_norms`, for one more small all-reduce; not under ZeRO. The
            same on all ranks
    """

    net: nn.Module
    model: nn.Module
    mesh: Mesh
    device: torch.device
    accumulate: int
    steps_done: int
    report_parts: bool

    @property
    def parameters(self) -> int:
        """The number of parameters of the whole net."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` / `accumulate` to the parameters' gradients."""
        ...

    def update(self, votes: Tensor | None = None) -> StepResult:
        """Averages the gradients over the replicas, clips them, and steps the optimizer.

        `votes`, float32 [VOTES] on the device, are summed over all ranks in the all-reduces of the loss
        and the gradient norm, so they cost no collective of their own.
        """
        ...

    def evaluate(self, batch: BatchT, sums: Callable[[nn.Module, BatchT], Tensor]) -> Tensor:
        """`sums(net, batch)` without gradients and in evaluation mode."""
        ...

    def state(self, moments: bool = True) -> HeldState:
        """What a resumed run needs of this rank; without `moments` what evaluation needs. Not collective.

        Whoever writes into its tensors calls `restored` afterwards.
        """
        ...

    def restored(self, steps_done: int) -> None:
        """The tensors of `state()` have got the values that they had after `steps_done` steps."""
        ...
