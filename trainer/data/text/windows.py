"""Sequences for a language net out of one long line of tokens, in an order that needs no index."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.sampling import random_integers
from trainer.data.shuffle import shuffled
from trainer.data.source import Batch
from trainer.data.text.shards import Tokens
from trainer.metrics import IGNORED, LanguageModel

_AHEAD = 16  # micro-batches
_SHIFT = 2**33  # the stream of random numbers for the epochs' shifts


@dataclass(frozen=True)
class Corpus:
    """Training and validation tokens; `separator` is the id between documents."""

    train: Tokens
    validation: Tokens
    separator: int


class TextSource:
    """Ids and next ids, both int64 [B, N]; see `Source` for the methods.

    Training: epoch e cuts the tokens, from a shift below N on, into `epoch_samples` = T // N − 1
    windows of N inputs, each overlapping the next by the one token that is target here and input
    there, and serves them in a random order. Shift and order follow from (seed, e) alone, so that
    sample k of epoch e is the same for every world size, and starting anywhere costs nothing.

    Validation: every one of the T tokens is predicted exactly once. Window w predicts tokens
    [w·N, (w+1)·N), each from the tokens before it since w·N − 1; what stands before token 0 is the
    separator. The last window is filled up with targets that do not count, and so is every rank's
    share, so that all ranks have equally many batches of equal shapes.
    """

    unit = "sequences"
    column_keys: tuple[str, ...] = ()

    def __init__(self, corpus: Corpus, context: int, seed: int) -> None:
        self.corpus, self.context, self.seed = corpus, context, seed
        self.task = LanguageModel()
        self.evaluations = {"validation": "validation"}
        self.epoch_samples = len(corpus.train) // context - 1
        assert self.epoch_samples > 0
        assert len(corpus.validation) > 0

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        wanted = self._wanted(start, batch, accumulate, rank, world)
        here = next(wanted)
        for ahead in wanted:
            self.corpus.train.expect(ahead, self.context + 1)
            ids = torch.from_numpy(self.corpus.train.windows(here, self.context + 1))
            yield Batch(ids[:, :-1], ids[:, 1:])
            here = ahead

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        windows = -(-len(self.corpus.validation) // self.context)
        mine = np.arange(-(-windows // world)) * world + rank
        for first in range(0, len(mine), batch):
            inputs, targets = zip(*map(self._validation_window, mine[first : first + batch]), strict=True)
            yield Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)))

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        return batch

    def _wanted(self, start: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[list[int]]:
        """Where the windows of each micro-batch begin; several at a time, for NumPy's calls are dear."""
        micro = batch // (accumulate * world)
        for ahead in itertools.count(0, _AHEAD):
            step, part = np.divmod(np.arange(ahead, ahead + _AHEAD), accumulate)
            first = start + step * batch + (part * world + rank) * micro
            yield from self._starts(first[:, None] + np.arange(micro)).tolist()

    def _starts(self, samples: np.ndarray) -> np.ndarray:
        """Where the windows of these samples of the endless order begin in the training tokens."""
        epochs, places = np.divmod(samples, self.epoch_samples)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            window = shuffled(self.seed, int(epoch), self.epoch_samples, places[here])
            shift = random_integers(self.seed, _SHIFT, np.array([epoch]), self.context)
            starts[here] = window * self.context + shift
        return starts

    def _validation_window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        N, tokens, separator = self.context, self.corpus.validation, self.corpus.separator
        start, stop = int(window) * N, min((int(window) + 1) * N, len(tokens))
        inputs = np.full(N, separator, np.int64)
        targets = np.full(N, IGNORED, np.int64)
        if start >= stop:
            return inputs, targets
        targets[: stop - start] = tokens.windows([start], stop - start)[0]
        inputs[1 : stop - start] = targets[: stop - start - 1]
        if start > 0:
            inputs[:1] = tokens.windows([start - 1], 1)[0]
        return inputs, targets
