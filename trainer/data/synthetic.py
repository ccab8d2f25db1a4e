"""Random images or tokens, to time a machine without a data set."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from models import ModelConfig
from trainer.data.sampling import Stream, micro_batches, random_bits
from trainer.data.source import Batch
from trainer.metrics import IGNORED, Classification, LanguageModel

_DISTINCT = 64  # samples, reused in turn: generating an image takes as long as decoding one


class SyntheticConfig(BaseModel):
    """Random images with random labels for a ViT, random tokens for a GPT.

    test_samples  how many to evaluate on
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["synthetic"] = "synthetic"
    test_samples: int = Field(256, ge=1)

    def check(self, model: ModelConfig) -> None:
        """Accept every model."""

    def build(self, model: ModelConfig, seed: int) -> "Synthetic":
        return Synthetic(self, model, seed)


class Synthetic:
    """uint8 [B, channels, height, width] and labels [B], or ids and next ids [B, N]; see `Source`."""

    shown_in_columns: tuple[str, ...] = ()

    def __init__(self, config: SyntheticConfig, model: ModelConfig, seed: int) -> None:
        self.test_samples = config.test_samples
        sample = np.arange(_DISTINCT)
        if model.kind == "vit":
            self.unit, self.task = "images", Classification()
            height, width = model.image_shape
            bytes_each = model.channels * height * width
            words = random_bits(seed, Stream.SYNTHETIC_INPUTS, np.arange(_DISTINCT * -(-bytes_each // 8)))
            pixels = words.view(np.uint8).reshape(_DISTINCT, -1)[:, :bytes_each]
            self.inputs = pixels.reshape(_DISTINCT, model.channels, height, width)
            self.targets = _below(model.classes, random_bits(seed, Stream.SYNTHETIC_TARGETS, sample))
        else:
            self.unit, self.task = "sequences", LanguageModel()
            words = random_bits(seed, Stream.SYNTHETIC_INPUTS, np.arange(_DISTINCT * (model.tokens + 1)))
            ids = _below(model.vocabulary, words).reshape(_DISTINCT, -1)
            self.inputs, self.targets = ids[:, :-1], ids[:, 1:]
        self.evaluations = {"test": self.task.headline}

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        return map(self._batch, micro_batches(start, batch, accumulate, rank, world))

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        # All ranks have the same number of batches; surplus samples are ignored.
        samples_of_rank = np.arange(-(-self.test_samples // world)) * world + rank
        for first in range(0, len(samples_of_rank), batch):
            samples = samples_of_rank[first : first + batch]
            filled = self._batch(samples)
            filled.targets[torch.from_numpy(samples >= self.test_samples)] = IGNORED
            yield filled

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        """Images as floats in [−1, 1]; tokens unchanged."""
        if batch.inputs.dtype != torch.uint8:
            return batch
        return Batch(batch.inputs.float().div_(127.5).sub_(1), batch.targets)

    def _batch(self, samples: np.ndarray) -> Batch:
        index = samples % _DISTINCT
        return Batch(torch.from_numpy(self.inputs[index]), torch.from_numpy(self.targets[index]))


def _below(bound: int, bits: np.ndarray) -> np.ndarray:
    return (bits % np.uint64(bound)).astype(np.int64)
