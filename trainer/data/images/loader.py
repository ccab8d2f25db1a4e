"""Worker processes that turn shards into batches of pixels, in an order that no process changes."""

import atexit
import logging
import math
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from parallel.errors import UserError
from trainer.data.images.jpeg import DRAWS, UNREADABLE, decode_evaluation, decode_training
from trainer.data.images.manifest import ImageManifest
from trainer.data.images.order import Order
from trainer.data.images.shards import Encoded, read_lane, read_shard
from trainer.data.sampling import random_bits
from trainer.data.source import Batch
from trainer.metrics import IGNORED

_CROP_STREAM = 2
AHEAD = 3  # portions that each worker prepares in advance

log = logging.getLogger(__name__)


class ImageSet:
    """Prepared images in a folder: its manifest and the paths of its shards."""

    def __init__(self, folder: Path, manifest: ImageManifest) -> None:
        self.paths = [folder / shard.file for shard in manifest.shards]
        self.counts = [shard.samples for shard in manifest.shards]
        self.names = manifest.classes
        self.classes = len(manifest.classes)


class Portion(NamedTuple):
    """A worker's part of a batch: pixels uint8 [b, size, size, 3], labels int64 [b]; what failed."""

    pixels: torch.Tensor
    labels: torch.Tensor
    skipped: list[str]
    error: str | None = None


@dataclass(frozen=True)
class Cropping:
    """Where random crops come from: size in pixels, share of the area, mirroring, seed."""

    size: int
    scale: tuple[float, float]
    flip: bool
    seed: int

    def decoder(self, numbers: np.ndarray) -> Callable[[int, bytes], np.ndarray]:
        """Decodes the JPEG of numbers[place]; its crop depends on that number and the seed alone."""
        counter = numbers[:, None] * DRAWS + np.arange(DRAWS)
        draws = random_bits(self.seed, _CROP_STREAM, counter) / 2.0**64
        return lambda place, jpeg: decode_training(jpeg, self.size, draws[place], self.scale, self.flip)


class _Memory:
    """Where portions are written: in a worker, memory that the training process sees.

    It is used again as soon as the training process has surely copied it, for the system takes longer
    to clear new memory than to fill it. The DataLoader asks a worker for its next portion but AHEAD
    when it hands one out, so that at most AHEAD + 1 are on their way or being copied.
    """

    def __init__(self) -> None:
        self.turns: list[torch.Tensor] = [torch.empty(0, dtype=torch.uint8)] * (AHEAD + 1)

    def take(self, *shape: int) -> torch.Tensor:
        """uint8 of this shape, with anything in it."""
        size = math.prod(shape)
        if get_worker_info() is None:
            return torch.from_numpy(np.empty(shape, np.uint8))
        memory = self.turns.pop(0)
        if len(memory) < size:
            memory = torch.empty(0, dtype=torch.uint8)
            memory.set_(torch.UntypedStorage._new_shared(size), 0, (size,))  # pyright: ignore[reportCallIssue]
        self.turns.append(memory)
        return memory[:size].view(shape)


_workers: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """End what a loader that is still in use has left; Python's own exit would wait for them, for ever,
    because they ignore the SIGTERM that it sends."""
    left = [worker for worker in _workers if worker.is_alive()]
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that dies
    for worker in left:
        worker.kill()


class _Portions(IterableDataset):
    """What a worker process runs: an iterator over its portions, errors of users included."""

    def __init__(self, portions: Callable[[int, int], Iterator[Portion]]) -> None:
        self.portions = portions

    def __iter__(self) -> Iterator[Portion]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:  # Ctrl-C and Slurm signal all processes; the training one saves and then ends these
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
        try:
            yield from self.portions(worker, workers)
        except UserError as error:  # crossing a process would bury its line in a traceback
            yield Portion(torch.empty(0), torch.empty(0), [], str(error))


class Loader:
    """The worker processes of one rank, and the count of what they had to skip."""

    def __init__(self, images: ImageSet, workers: int) -> None:
        self.images = images
        self.workers = workers
        self.skipped = 0

    def training(
        self, order: Order, cropping: Cropping, start: int, batch: int, rank: int, world: int
    ) -> Iterator[Batch]:
        """Endless batches of `batch` samples of this rank, from sample number `start` on."""
        workers = max(1, self.workers)

        def numbers() -> Iterator[np.ndarray]:
            first = start
            while True:
                yield order.numbers(first, batch, rank, world)
                first += batch * world

        def portions(worker: int, workers: int) -> Iterator[Portion]:
            memory, current = _Memory(), -1
            lanes: dict[int, Iterator[Encoded]] = {}
            for number in numbers():
                mine = number[order.worker(number, world, workers) == worker]
                samples = []
                for one in mine.tolist():
                    epoch, place = divmod(one, order.samples)
                    lane = place % order.lanes
                    if epoch != current:
                        current = epoch
                        lanes.clear()  # closes their files; in the next epoch other lanes may be ours
                    if lane not in lanes:
                        wanted = order.wanted(epoch, lane, one, rank, world)
                        lanes[lane] = read_lane(self.images.paths, wanted)
                    samples.append(next(lanes[lane]))
                pixels = memory.take(len(mine), cropping.size, cropping.size, 3)
                yield self._portion(samples, pixels, cropping.decoder(mine))

        received = self._received(portions)
        seen = deque[Portion](maxlen=workers * (AHEAD + 1))  # what comes again need not be mapped again
        for number in numbers():
            # NumPy puts whole images in their places ten times as fast as torch does.
            pixels = np.empty((batch, cropping.size, cropping.size, 3), np.uint8)
            labels = np.empty(batch, np.int64)
            worker = order.worker(number, world, workers)
            for each in range(workers):
                portion = self._checked(next(received))
                seen.append(portion)
                pixels[worker == each] = portion.pixels.numpy()
                labels[worker == each] = portion.labels.numpy()
            yield Batch(torch.from_numpy(pixels), torch.from_numpy(labels))

    def evaluation(self, size: int, batch: int, rank: int, world: int) -> Iterator[Batch]:
        """Every sample once over all ranks, each a run of neighbours in the shards.

        Every rank gets equally many batches of equal sizes, for engines whose ranks must all take
        part; places left over have the label IGNORED.
        """
        order = Order(self.images.counts, 1, 1, 0)
        ends = np.cumsum(order.counts)

        def portions(worker: int, workers: int) -> Iterator[Portion]:
            share = -(-order.samples // (world * workers))
            first = (rank * workers + worker) * share
            line = np.arange(first, min(first + share, order.samples))
            samples = self._neighbours(line, ends)
            for at in range(0, share, batch):
                count = min(batch, share - at)
                part = list(islice(samples, count))
                # Not to be used again: these pixels are handed out as they are.
                pixels = _Memory().take(count, size, size, 3)
                yield self._portion(part, pixels, lambda _, jpeg: decode_evaluation(jpeg, size))

        for portion in self._received(portions):
            self._checked(portion)
            yield Batch(portion.pixels, portion.labels)

    def _neighbours(self, line: np.ndarray, ends: np.ndarray) -> Iterator[Encoded]:
        shards = np.searchsorted(ends, line, side="right")
        for shard in np.unique(shards).tolist():
            yield from read_shard(
                self.images.paths[shard], line[shards == shard] - (ends[shard] - self.images.counts[shard])
            )

    def _portion(
        self,
        samples: Sequence[Encoded],
        memory: torch.Tensor,
        decode: Callable[[int, bytes], np.ndarray],
    ) -> Portion:
        """The samples' pixels, in `memory`, and labels, filled up with what does not count."""
        pixels, labels = memory.numpy(), np.full(len(memory), IGNORED, np.int64)
        pixels[len(samples) :] = 0
        skipped = []
        for place, sample in enumerate(samples):
            try:
                label = int(sample.label)
                if not 0 <= label < self.images.classes:
                    raise ValueError(f"class {label} is not below {self.images.classes}")
                pixels[place] = decode(place, sample.jpeg)
                labels[place] = label
            except UNREADABLE as error:
                pixels[place] = 0
                skipped.append(f"{sample.name}: {' '.join(str(error).split())}")
        return Portion(memory, torch.from_numpy(labels), skipped)

    def _received(self, portions: Callable[[int, int], Iterator[Portion]]) -> Iterator[Portion]:
        loader = DataLoader(
            _Portions(portions),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            generator=torch.Generator(),  # or it would draw from the one that dropout draws from
        )
        received = iter(loader)
        _workers.update(getattr(received, "_workers", ()))
        return received

    def _checked(self, portion: Portion) -> Portion:
        if portion.error:
            raise UserError(portion.error)
        for line in portion.skipped:
            self.skipped += 1
            log.warning("skipped %s (%d in this run)", line, self.skipped)
        return portion
