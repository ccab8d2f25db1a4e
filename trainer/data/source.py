"""What the loop asks of a data source, and the batch that both pass around."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from trainer.metrics import Task


class Batch(NamedTuple):
    """Inputs and targets of some samples; the first dimension of both is the sample."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, copied without waiting for it."""
        if device.type != "cuda":
            return Batch(*(part.to(device) for part in self))
        return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in self))


class Source(Protocol):
    """Training data in an order that depends on (seed, position) only, and evaluation sets."""

    unit: str  # what is counted per second: "images"
    column_keys: tuple[str, ...]  # config keys that choose a study's column, not its row

    @property
    def task(self) -> Task:
        """Loss and measures."""
        ...

    @property
    def evaluations(self) -> dict[str, str]:
        """Evaluation sets of a net trained on this source: name → title of its result column."""
        ...

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Endless micro-batches of data rank `rank`, `accumulate` for each optimizer step.

        Step after step consumes `batch` samples of one global order, from sample number `start`
        on. The ranks' micro-batches m together hold its samples [m·world·b, (m + 1)·world·b), each
        rank b = batch / (accumulate·world) of them: a run of neighbours, or every world-th.
        Raises UserError at the call, before any batch, for data that so many ranks cannot share.
        """
        ...

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every sample of an evaluation set once over all ranks, at most `batch` at a time."""
        ...

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        """What remains to be done to a batch once it is on the device, such as normalisation.

        In training this may draw from torch's global generators, which the loop seeds by step and
        data rank.
        """
        ...
