"""Static and Dynamic MNIST (arXiv 2510.10060): a digit in the middle or at a random place."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from parallel.errors import UserError
from trainer.data.digits.mnist import CLASSES, SIDE, load_digits
from trainer.data.sampling import micro_batches, permutation, random_integers
from trainer.data.source import Batch
from trainer.metrics import Classification

if TYPE_CHECKING:
    from models import ModelConfig

Placement = Literal["static", "dynamic"]

# Streams of random numbers; the epochs' permutations use those from _ORDER on.
_ROW, _COLUMN, _ORDER = 0, 1, 16
_EVALUATION_SEED = 20_251_010
_DEVIATION = 0.3081  # of MNIST's pixels; the mean is left in, so that background stays 0


class MovingMnistConfig(BaseModel):
    """28×28 digits on an empty canvas; `path` is a folder of the IDX files, null the embedded."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["moving_mnist"] = "moving_mnist"
    path: Path | None = None
    train: Placement = "dynamic"
    canvas: int = Field(84, ge=SIDE)
    test_samples: int | None = Field(None, ge=1)

    def check(self, model: "ModelConfig") -> None:
        """Raise UserError where a model cannot take this data."""
        if model.kind != "vit":
            raise UserError(f"model.kind={model.kind}: data.kind=moving_mnist is images and needs vit")
        for key, wanted in (
            ("image_size", self.canvas),
            ("channels", 1),
            ("classes", CLASSES),
        ):
            value = getattr(model, key, None)
            if value is None:
                raise UserError(f"model.kind={model.kind}: data.kind=moving_mnist needs a net for images")
            if value != wanted:
                raise UserError(
                    f"model.{key}={value}: data.kind=moving_mnist with data.canvas={self.canvas} "
                    f"needs {wanted}"
                )

    def build(self, model: "ModelConfig", seed: int) -> "MovingMnist":
        """The source; raises UserError for files it cannot use."""
        return MovingMnist(self, seed)


class MovingMnist:
    """Images uint8 [B, 1, canvas, canvas] and labels int64 [B]; see `Source` for the methods."""

    unit = "images"
    column_keys: tuple[str, ...] = ("data.train",)

    def __init__(self, config: MovingMnistConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.task = Classification()
        self.digits = load_digits(config.path)
        self.canvas = config.canvas
        self.test_samples = min(config.test_samples or 10**9, len(self.digits.test_images))

    @property
    def evaluations(self) -> dict[str, str]:
        if self.config.train == "dynamic":
            return {"dynamic": "Dynamic→Dynamic"}
        return {"static": "Static→Static", "dynamic": "Static→Dynamic"}

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if self.test_samples < world:
            raise UserError(f"data.test_samples={self.test_samples}: each of {world} data ranks needs one")
        return map(self._train_batch, micro_batches(start, batch, accumulate, rank, world))

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        mine = np.arange(rank, self.test_samples, world)
        for first in range(0, len(mine), batch):
            index = mine[first : first + batch]
            images, labels = self.digits.test_images[index], self.digits.test_labels[index]
            yield self._batch(images, labels, name, _EVALUATION_SEED, index)

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        return Batch(batch.inputs.float().mul_(1 / (255 * _DEVIATION)), batch.targets)

    def _train_batch(self, samples: np.ndarray) -> Batch:
        count = len(self.digits.train_images)
        index = np.empty_like(samples)
        for epoch in np.unique(samples // count):
            here = samples // count == epoch
            index[here] = permutation(self.seed, _ORDER + int(epoch), count)[samples[here] % count]
        images, labels = self.digits.train_images[index], self.digits.train_labels[index]
        return self._batch(images, labels, self.config.train, self.seed, samples)

    def _batch(
        self, images: np.ndarray, labels: np.ndarray, placement: str, seed: int, counter: np.ndarray
    ) -> Batch:
        room = self.canvas - SIDE
        rows = columns = np.full(len(images), room // 2)
        if placement == "dynamic":
            rows = random_integers(seed, _ROW, counter, room + 1)
            columns = random_integers(seed, _COLUMN, counter, room + 1)
        canvas = place(images, rows, columns, self.canvas)
        return Batch(torch.from_numpy(canvas), torch.from_numpy(labels.astype(np.int64)))


def place(images: np.ndarray, rows: np.ndarray, columns: np.ndarray, canvas: int) -> np.ndarray:
    """Put images[B, h, w] with their upper left corners at (rows, columns)[B].

    Returns [B, 1, canvas, canvas], zero elsewhere.
    """
    B, height, width = images.shape
    out = np.zeros((B, canvas, canvas), images.dtype)
    sample = np.arange(B)[:, None, None]
    y = rows[:, None, None] + np.arange(height)[:, None]
    x = columns[:, None, None] + np.arange(width)
    out[sample, y, x] = images
    return out[:, None]
