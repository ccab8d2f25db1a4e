"""Cut one long sequence of tokens into windows for a language net, in a random order."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.sampling import ROUNDS, Stream, permutation_at, random_integers
from trainer.data.source import Batch
from trainer.data.text.shards import Tokens
from trainer.metrics import IGNORED, LanguageModel

_AT_ONCE = 16  # micro-batches whose windows are drawn together, since NumPy calls are slow


@dataclass(frozen=True)
class Corpus:
    """Training and validation tokens; `separator` is the id after each document."""

    train: Tokens
    validation: Tokens
    separator: int


class TextSource:
    """Ids and next ids, both int64 [B, N]; see `Source` for the methods.

    Training: epoch e skips a random number of tokens below N and cuts the rest into `epoch_samples` =
    T // N − 1 windows of N inputs, in random order. The last target of a window is the first input of
    the next. Shift and order depend only on (seed, e), so sample k of epoch e is the same for every
    world size, and starting anywhere costs nothing.

    Validation: each of the T tokens is predicted exactly once. Window w predicts tokens [w·N, (w+1)·N)
    from the tokens since w·N − 1; the separator precedes token 0. The last window and each rank's share
    are padded with ignored targets, so that all ranks have the same number of batches of the same shape.
    """

    unit = "sequences"
    shown_in_columns: tuple[str, ...] = ()

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
        tokens, length = self.corpus.train, self.context + 1
        window_starts = self._window_starts(start, batch, accumulate, rank, world)
        for current, following in itertools.pairwise(window_starts):
            tokens.prefetch(following, length)
            ids = torch.from_numpy(tokens.windows(current, length))
            yield Batch(ids[:, :-1], ids[:, 1:])

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        windows = -(-len(self.corpus.validation) // self.context)
        windows_of_rank = np.arange(-(-windows // world)) * world + rank
        for first in range(0, len(windows_of_rank), batch):
            inputs, targets = zip(
                *map(self._validation_window, windows_of_rank[first : first + batch]), strict=True
            )
            yield Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)))

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        return batch

    def _window_starts(
        self, start: int, batch: int, accumulate: int, rank: int, world: int
    ) -> Iterator[list[int]]:
        """The first tokens of the windows of each micro-batch."""
        micro = batch // (accumulate * world)
        for number in itertools.count(0, _AT_ONCE):
            step, part = np.divmod(np.arange(number, number + _AT_ONCE), accumulate)
            first = start + step * batch + (part * world + rank) * micro
            yield from self._starts(first[:, None] + np.arange(micro)).tolist()

    def _starts(self, samples: np.ndarray) -> np.ndarray:
        """The first tokens of these samples' windows; samples are numbered over all epochs."""
        epochs, positions = np.divmod(samples, self.epoch_samples)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            stream = Stream.TEXT_ORDER + ROUNDS * int(epoch)
            window = permutation_at(self.seed, stream, self.epoch_samples, positions[in_epoch])
            shift = random_integers(self.seed, Stream.TEXT_SHIFT, np.array([epoch]), self.context)
            starts[in_epoch] = window * self.context + shift
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
