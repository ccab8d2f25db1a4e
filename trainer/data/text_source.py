"""Sequences for a language net out of one long line of tokens, in an order that needs no index."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.order import random_integers
from trainer.data.shuffle import shuffled
from trainer.data.source import Batch
from trainer.data.text_shards import Tokens
from trainer.task import IGNORED, LanguageModel

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
        self.evaluations = {"validation": "perplexity"}
        self.epoch_samples = len(corpus.train) // context - 1
        assert self.epoch_samples > 0
        assert len(corpus.validation) > 0

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        micro = batch // (accumulate * world)
        N, train = self.context, self.corpus.train

        def micro_batch(number: int) -> list[int]:
            step, part = divmod(number, accumulate)
            first = start + step * batch + (part * world + rank) * micro
            return self._starts(np.arange(first, first + micro)).tolist()

        here, number = micro_batch(0), 0
        while True:
            windows = np.stack([train.read(at, at + N + 1) for at in here]).astype(np.int64)
            number += 1
            here = micro_batch(number)
            for at in here:
                train.expect(at, at + N + 1)
            yield Batch(*(torch.from_numpy(ids) for ids in (windows[:, :-1], windows[:, 1:])))

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        windows = -(-len(self.corpus.validation) // self.context)
        mine = np.arange(-(-windows // world)) * world + rank
        for first in range(0, len(mine), batch):
            inputs, targets = zip(*map(self._validation_window, mine[first : first + batch]), strict=True)
            yield Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)))

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        return batch

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
        targets[: stop - start] = tokens.read(start, stop)
        inputs[1 : stop - start] = targets[: stop - start - 1]
        if start > 0:
            inputs[:1] = tokens.read(start - 1, start)
        return inputs, targets
