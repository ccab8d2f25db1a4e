"""Worker processes that turn shards into batches of pixels; their number does not affect the order."""

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
from trainer.data.sampling import Stream, random_bits
from trainer.data.source import Batch
from trainer.metrics import IGNORED

PREFETCH = 3  # batch parts that each worker prepares in advance

log = logging.getLogger(__name__)


class ImageSet:
    """Prepared images in a folder."""

    def __init__(self, folder: Path, manifest: ImageManifest) -> None:
        self.paths = [folder / shard.file for shard in manifest.shards]
        self.counts = [shard.samples for shard in manifest.shards]
        self.classes = manifest.classes


class BatchPart(NamedTuple):
    """A worker's part of a batch: pixels uint8 [b, height, width, 3] and labels int64 [b].

    skipped   a line for each unreadable image, whose label is IGNORED
    error     message of a UserError in the worker
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    skipped: list[str]
    error: str | None = None


@dataclass(frozen=True)
class Cropping:
    """Random crops: (height, width) in pixels, range of the share of the area, mirroring, seed."""

    shape: tuple[int, int]
    scale: tuple[float, float]
    flip: bool
    seed: int

    def decoder(self, numbers: np.ndarray) -> Callable[[int, bytes], np.ndarray]:
        """A function (i, JPEG) → pixels, whose crop depends only on the seed and sample number numbers[i]."""
        counter = numbers[:, None] * DRAWS + np.arange(DRAWS)
        draws = random_bits(self.seed, Stream.IMAGE_CROP, counter) / 2.0**64
        return lambda i, jpeg: decode_training(jpeg, self.shape, draws[i], self.scale, self.flip)


class _PixelBuffers:
    """Buffers for the pixels of batch parts: in a worker, memory shared with the training process.

    They are reused, because the system takes longer to clear new memory than we take to fill it. When
    the DataLoader hands out a part it requests another one PREFETCH parts later, so at most
    PREFETCH + 1 are queued or being copied, and the oldest of that many buffers is free.
    """

    def __init__(self) -> None:
        self.buffers = deque([torch.empty(0, dtype=torch.uint8)] * (PREFETCH + 1))

    def next(self, *shape: int) -> torch.Tensor:
        """An uninitialised uint8 tensor of this shape."""
        size = math.prod(shape)
        if get_worker_info() is None:
            return torch.from_numpy(np.empty(shape, np.uint8))
        buffer = self.buffers.popleft()
        if len(buffer) < size:
            buffer = torch.empty(0, dtype=torch.uint8)
            buffer.set_(torch.UntypedStorage._new_shared(size), 0, (size,))  # pyright: ignore[reportCallIssue]
        self.buffers.append(buffer)
        return buffer[:size].view(shape)


_workers: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """Kill leftover workers at exit; they ignore SIGTERM."""
    running = [worker for worker in _workers if worker.is_alive()]
    if running:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that dies
    for worker in running:
        worker.kill()


class _BatchParts(IterableDataset):
    """Runs `parts(worker, workers)` in a worker process; a UserError there becomes the last part."""

    def __init__(self, parts: Callable[[int, int], Iterator[BatchPart]]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[BatchPart]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:  # Ctrl-C and Slurm signal all processes; the training process saves, then ends these
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
        try:
            yield from self.parts(worker, workers)
        except UserError as error:  # raising it across processes would print a traceback
            yield BatchPart(torch.empty(0), torch.empty(0), [], str(error))


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

        def numbers() -> Iterator[np.ndarray]:
            first = start
            while True:
                yield order.numbers(first, batch, rank, world)
                first += batch * world

        def parts(worker: int, workers: int) -> Iterator[BatchPart]:
            buffers, current_epoch = _PixelBuffers(), -1
            lanes: dict[int, Iterator[Encoded]] = {}
            for batch_numbers in numbers():
                own = batch_numbers[order.worker(batch_numbers, world, workers) == worker]
                samples = []
                for number in own.tolist():
                    epoch, position = divmod(number, order.samples)
                    lane = position % order.lanes
                    if epoch != current_epoch:
                        current_epoch = epoch
                        lanes.clear()  # closes the files; this worker's lanes may be others in this epoch
                    if lane not in lanes:
                        wanted = order.lane_samples(epoch, lane, number, rank, world)
                        lanes[lane] = read_lane(self.images.paths, wanted)
                    samples.append(next(lanes[lane]))
                pixels = buffers.next(len(own), *cropping.shape, 3)
                yield self._decode(samples, pixels, cropping.decoder(own))

        received = self._start(parts)
        recent = deque[BatchPart](maxlen=workers * (PREFETCH + 1))  # keeps reused buffers mapped
        try:
            for batch_numbers in numbers():
                # NumPy scatters whole images ten times as fast as torch.
                pixels = np.empty((batch, *cropping.shape, 3), np.uint8)
                labels = np.empty(batch, np.int64)
                worker_of = order.worker(batch_numbers, world, workers)
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
        order = Order(self.images.counts, 1, 1, 0)
        ends = np.cumsum(order.counts)

        def parts(worker: int, workers: int) -> Iterator[BatchPart]:
            share = -(-order.samples // (world * workers))
            first = (rank * workers + worker) * share
            samples = self._read(np.arange(first, min(first + share, order.samples)), ends)
            for start in range(0, share, batch):
                count = min(batch, share - start)
                # A buffer of its own: these pixels are handed out without a copy.
                pixels = _PixelBuffers().next(count, *shape, 3)
                yield self._decode(
                    list(islice(samples, count)), pixels, lambda _, jpeg: decode_evaluation(jpeg, shape)
                )

        for part in self._start(parts):
            self._checked(part)
            yield Batch(part.pixels, part.labels)

    def _read(self, numbers: np.ndarray, ends: np.ndarray) -> Iterator[Encoded]:
        """The samples with these ascending numbers, counted through all shards, which end at `ends`."""
        shards = np.searchsorted(ends, numbers, side="right")
        for shard in np.unique(shards).tolist():
            first = ends[shard] - self.images.counts[shard]
            yield from read_shard(self.images.paths[shard], numbers[shards == shard] - first)

    def _decode(
        self,
        samples: Sequence[Encoded],
        buffer: torch.Tensor,
        decode: Callable[[int, bytes], np.ndarray],
    ) -> BatchPart:
        """Decode the samples into `buffer`; surplus places become zeros with the label IGNORED."""
        pixels, labels = buffer.numpy(), np.full(len(buffer), IGNORED, np.int64)
        pixels[len(samples) :] = 0
        skipped = []
        classes = len(self.images.classes)
        for i, sample in enumerate(samples):
            try:
                label = int(sample.label)
                if not 0 <= label < classes:
                    raise ValueError(f"label {label} is not below the {classes} classes")
                pixels[i] = decode(i, sample.jpeg)
                labels[i] = label
            except UNREADABLE as error:
                pixels[i] = 0
                skipped.append(f"{sample.name}: {' '.join(str(error).split())}")
        return BatchPart(buffer, torch.from_numpy(labels), skipped)

    def _start(self, parts: Callable[[int, int], Iterator[BatchPart]]) -> Iterator[BatchPart]:
        loader = DataLoader(
            _BatchParts(parts),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=PREFETCH if self.workers else None,
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
