"""Worker processes that turn shards into batches of pixels; their number does not affect the order."""

import atexit
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import DataLoader

from parallel.errors import UserError
from trainer.data.images.order import Order
from trainer.data.images.parts import (
    PREFETCH,
    BatchPart,
    Cropping,
    EvaluationParts,
    ImageSet,
    Parts,
    TrainingParts,
    WorkerParts,
)
from trainer.data.source import Batch

log = logging.getLogger(__name__)

_workers: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """Kill leftover workers at exit; they ignore SIGTERM."""
    running = [worker for worker in _workers if worker.is_alive()]
    if running:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that dies
    for worker in running:
        worker.kill()


def worker_context() -> BaseContext | None:
    """How workers start: forked from this process, or where CUDA may be in use already, which a fork would
    break, from a server process that has imported what they need."""
    if not torch.cuda.is_available():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([TrainingParts.__module__])
    return context


class Loader:
    """Worker processes of one rank (0: none); counts the images they skip."""

    def __init__(self, images: ImageSet, workers: int) -> None:
        self.images = images
        self.workers = workers
        self.skipped = 0

    def training(
        self, order: Order, cropping: Cropping, start: int, batch: int, rank: int, world: int
    ) -> Iterator[Batch]:
        """Endless batches of `batch` samples of this rank, from sample number `start` on."""
        workers = max(1, self.workers)
        parts = TrainingParts(self.images, order, cropping, start, batch, rank, world)
        received = self._start(parts)
        recent = deque[BatchPart](maxlen=workers * (PREFETCH + 1))  # keeps reused buffers mapped
        try:
            for batch_numbers in parts.numbers():
                # NumPy scatters whole images ten times as fast as torch.
                pixels = np.empty((batch, *cropping.shape, 3), np.uint8)
                labels = np.empty(batch, np.int64)
                worker_of = parts.worker_of(batch_numbers, workers)
                for worker in range(workers):
                    part = self._checked(next(received))
                    recent.append(part)
                    pixels[worker_of == worker] = part.pixels.numpy()
                    labels[worker_of == worker] = part.labels.numpy()
                yield Batch(torch.from_numpy(pixels), torch.from_numpy(labels))
        finally:
            # Ends the workers now: the garbage collector, as after an error, would wait 5 s for each.
            del received

    def evaluation(self, shape: tuple[int, int], batch: int, rank: int, world: int) -> Iterator[Batch]:
        """Every sample once over all ranks, resized to shape = (height, width).

        All ranks get the same number of batches of the same sizes, for engines whose ranks must take
        part together; surplus places have the label IGNORED.
        """
        for part in self._start(EvaluationParts(self.images, shape, batch, rank, world)):
            self._checked(part)
            yield Batch(part.pixels, part.labels)

    def _start(self, parts: Parts) -> Iterator[BatchPart]:
        loader = DataLoader(
            WorkerParts(parts),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=PREFETCH if self.workers else None,
            multiprocessing_context=worker_context() if self.workers else None,
            generator=torch.Generator(),  # the default one is dropout's
        )
        received = iter(loader)
        _workers.update(getattr(received, "_workers", ()))
        return received

    def _checked(self, part: BatchPart) -> BatchPart:
        """The part, after raising its error and logging skipped images."""
        if part.error:
            raise UserError(part.error)
        for line in part.skipped:
            self.skipped += 1
            log.warning("skipped %s (%d in this run)", line, self.skipped)
        return part
