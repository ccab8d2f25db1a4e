"""Static and Dynamic MNIST (arXiv 2510.10060): a digit in the middle or at a random position."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models import ModelConfig
from parallel.errors import UserError
from trainer.data.digits.mnist import CLASSES, SIDE, load_digits
from trainer.data.sampling import Stream, micro_batches, permutation, random_integers
from trainer.data.source import Batch
from trainer.metrics import IGNORED, Classification

Placement = Literal["static", "dynamic"]

_EVALUATION_SEED = 20_251_010
DEVIATION = 0.3081  # standard deviation of MNIST's pixels; the mean stays, so background is 0


class MovingMnistConfig(BaseModel):
    """28×28 digits on an empty canvas.

    path     folder of the four IDX files; null: the bundled subset
    canvas   side in pixels, or [height, width]
    train         static: training digits in the middle; dynamic: anywhere
    test_samples  how many test digits; null: all
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["moving_mnist"] = "moving_mnist"
    path: Path | None = None
    train: Placement = "dynamic"
    canvas: int | tuple[int, int] = 84
    test_samples: int | None = Field(None, ge=1)

    @field_validator("canvas", mode="before")
    @classmethod
    def _large_enough(cls, canvas: Any) -> Any:
        sides = canvas if isinstance(canvas, (list, tuple)) and len(canvas) == 2 else [canvas]
        if not all(isinstance(side, int) and side >= SIDE for side in sides):
            raise ValueError(f"should be a side of at least {SIDE} pixels, or [height, width] of such sides")
        return canvas

    @property
    def canvas_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.canvas, self.canvas) if isinstance(self.canvas, int) else self.canvas

    def check(self, model: ModelConfig) -> None:
        """Raise UserError for a model that cannot take this data."""
        if model.kind != "vit":
            raise UserError(f"model.kind={model.kind}: data.kind=moving_mnist is images and needs vit")
        canvas = self.canvas if isinstance(self.canvas, int) else list(self.canvas)
        for key, value, fits, wanted in (
            ("image_size", model.image_size, model.image_shape == self.canvas_shape, canvas),
            ("channels", model.channels, model.channels == 1, 1),
            ("classes", model.classes, model.classes == CLASSES, CLASSES),
        ):
            if not fits:
                raise UserError(
                    f"model.{key}={value}: data.kind=moving_mnist with data.canvas={canvas} needs {wanted}"
                )

    def build(self, model: ModelConfig, seed: int) -> "MovingMnist":
        """The source; raises UserError for files it cannot use."""
        return MovingMnist(self, seed)


class MovingMnist:
    """Images uint8 [B, 1, height, width] and labels int64 [B]; see `Source` for the methods."""

    unit = "images"
    shown_in_columns: tuple[str, ...] = ("data.train",)

    def __init__(self, config: MovingMnistConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.task = Classification()
        self.digits = load_digits(config.path)
        self.canvas_shape = config.canvas_shape
        self.test_samples = min(config.test_samples or 10**9, len(self.digits.test_images))

    @property
    def evaluations(self) -> dict[str, str]:
        if self.config.train == "dynamic":
            return {"dynamic": "Dynamic→Dynamic"}
        return {"static": "Static→Static", "dynamic": "Static→Dynamic"}

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        return map(self._train_batch, micro_batches(start, batch, accumulate, rank, world))

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        samples_of_rank = np.arange(-(-self.test_samples // world)) * world + rank
        for first in range(0, len(samples_of_rank), batch):
            samples = samples_of_rank[first : first + batch]
            index = np.minimum(samples, self.test_samples - 1)
            images, labels = self.digits.test_images[index], self.digits.test_labels[index]
            labels = np.where(samples < self.test_samples, labels.astype(np.int64), IGNORED)
            yield self._batch(images, labels, name, _EVALUATION_SEED, index)

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        return Batch(batch.inputs.float().mul_(1 / (255 * DEVIATION)), batch.targets)

    def _train_batch(self, samples: np.ndarray) -> Batch:
        count = len(self.digits.train_images)
        index = np.empty_like(samples)
        for epoch in np.unique(samples // count):
            in_epoch = samples // count == epoch
            index[in_epoch] = permutation(self.seed, Stream.DIGIT_ORDER + int(epoch), count)[
                samples[in_epoch] % count
            ]
        images, labels = self.digits.train_images[index], self.digits.train_labels[index]
        return self._batch(images, labels, self.config.train, self.seed, samples)

    def _batch(
        self, images: np.ndarray, labels: np.ndarray, placement: str, seed: int, samples: np.ndarray
    ) -> Batch:
        last_row, last_column = (side - SIDE for side in self.canvas_shape)
        rows = np.full(len(images), last_row // 2)
        columns = np.full(len(images), last_column // 2)
        if placement == "dynamic":
            rows = random_integers(seed, Stream.DIGIT_ROW, samples, last_row + 1)
            columns = random_integers(seed, Stream.DIGIT_COLUMN, samples, last_column + 1)
        canvas = place(images, rows, columns, self.canvas_shape)
        return Batch(torch.from_numpy(canvas), torch.from_numpy(labels.astype(np.int64)))


def place(
    images: np.ndarray, rows: np.ndarray, columns: np.ndarray, canvas_shape: tuple[int, int]
) -> np.ndarray:
    """Put images[B, h, w] with their upper left corners at (rows, columns)[B] of zero canvases.

    Returns [B, 1, *canvas_shape].
    """
    B, height, width = images.shape
    out = np.zeros((B, *canvas_shape), images.dtype)
    sample = np.arange(B)[:, None, None]
    y = rows[:, None, None] + np.arange(height)[:, None]
    x = columns[:, None, None] + np.arange(width)
    out[sample, y, x] = images
    return out[:, None]
