"""The numbers of each step, read from the device without making it wait."""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.engine.interface import StepResult


class StepNumbers(NamedTuple):
    """A step's scalars on the host; `samples` were consumed when it was done."""

    step: int
    samples: int
    loss: float
    grad_norm: float
    lr: float
    votes: list[float]

    @property
    def skipped(self) -> bool:
        """Whether the step changed nothing because a number is not finite; the same on every rank."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


class _Copy(NamedTuple):
    step: int
    samples: int
    lr: float
    numbers: Tensor  # float64 [2 + VOTES] in host memory: loss, grad_norm, votes
    arrived: torch.cuda.Event | None

    def read(self) -> StepNumbers:
        if self.arrived:
            self.arrived.synchronize()
        loss, norm, *votes = self.numbers.tolist()
        return StepNumbers(self.step, self.samples, loss, norm, self.lr, votes)


class StepReader:
    """Hands out each step's numbers `late` steps later: by default one on CUDA, which so always has a step
    to work on while the host waits for the one before, and none on the CPU."""

    def __init__(self, device: torch.device, late: int | None = None) -> None:
        self._late = (1 if device.type == "cuda" else 0) if late is None else late
        self._copies: deque[_Copy] = deque()

    def add(self, step: int, samples: int, result: StepResult) -> list[StepNumbers]:
        """Start copying a step's numbers; returns those of the steps that are due, the same on every rank."""
        scalars = torch.stack((result.loss, result.grad_norm)).double()
        numbers, arrived = torch.cat((scalars, result.votes.double())), None
        if numbers.device.type == "cuda":
            pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = pinned.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._copies.append(_Copy(step, samples, result.lr, numbers, arrived))
        return [self._copies.popleft().read() for _ in range(len(self._copies) - self._late)]

    def rest(self) -> list[StepNumbers]:
        """The numbers not handed out yet; waits for the device."""
        rest = [copy.read() for copy in self._copies]
        self._copies.clear()
        return rest
