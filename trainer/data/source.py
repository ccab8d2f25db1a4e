"""The interface between training and a data source."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from trainer.metrics import Task


class Batch(NamedTuple):
    """Inputs and targets of some samples; their first dimension is the sample."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Source(Protocol):
    """Training data in an order that depends only on (seed, sample number), and evaluation sets."""

    unit: str  # "images" or "sequences", for throughput
    shown_in_columns: tuple[str, ...]  # study keys whose values become columns of the result table, not rows

    @property
    def task(self) -> Task:
        """What is measured on an evaluation set."""
        ...

    @property
    def evaluations(self) -> dict[str, str]:
        """Evaluation sets: name → title of the column in result tables."""
        ...

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Endless micro-batches of data rank `rank`, of b = batch / (accumulate·world) samples each.

        An optimizer step takes `accumulate` of them from each of `world` ranks, so it takes the next
        `batch` samples of one global order, whose first is sample number `start`. Micro-batch m of all
        ranks holds samples start + [m·world·b, (m + 1)·world·b); a rank's share is either contiguous
        or every world-th sample. Raises UserError at the call, before any batch, when the data cannot
        be divided among so many ranks.
        """
        ...

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This rank's share of an evaluation set, in batches of at most `batch` samples.

        All ranks get equally many batches of equal sizes, because an engine's ranks evaluate together;
        surplus samples have the target IGNORED.
        """
        ...

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        """Final processing of a batch on its device, such as normalisation and augmentation.

        In training this may draw from torch's global generators, which are seeded by step and data
        rank.
        """
        ...
