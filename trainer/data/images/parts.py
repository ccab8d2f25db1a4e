"""What a worker process does: read its share of the samples, decode them into parts of batches.

Everything here can be pickled, because on CUDA workers are not forked from the training process.
"""

import math
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from parallel.errors import UserError
from trainer.data.images.jpeg import DRAWS, UNREADABLE, decode_evaluation, decode_training
from trainer.data.images.manifest import ImageManifest
from trainer.data.images.order import Order
from trainer.data.images.shards import Encoded, read_lane, read_shard
from trainer.data.prepare.pool import exit_with_parent
from trainer.data.sampling import Stream, random_bits
from trainer.metrics import IGNORED

PREFETCH = 3  # batch parts that each worker prepares in advance


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


class Parts(Protocol):
    """The endless or finite parts of batches that worker number `worker` of `workers` makes."""

    def __call__(self, worker: int, workers: int) -> Iterator[BatchPart]: ...


@dataclass(frozen=True)
class TrainingParts:
    """Endless parts of this rank's batches of `batch` samples, from sample number `start` on."""

    images: ImageSet
    order: Order
    cropping: Cropping
    start: int
    batch: int
    rank: int
    world: int

    def numbers(self) -> Iterator[np.ndarray]:
        """The sample numbers of each batch."""
        first = self.start
        while True:
            yield self.order.numbers(first, self.batch, self.rank, self.world)
            first += self.batch * self.world

    def worker_of(self, numbers: np.ndarray, workers: int) -> np.ndarray:
        """The worker that decodes each of these samples."""
        return self.order.worker(numbers, self.world, workers)

    def __call__(self, worker: int, workers: int) -> Iterator[BatchPart]:
        order = self.order
        buffers, current_epoch = _PixelBuffers(), -1
        lanes: dict[int, Iterator[Encoded]] = {}
        for batch_numbers in self.numbers():
            own = batch_numbers[self.worker_of(batch_numbers, workers) == worker]
            samples = []
            for number in own.tolist():
                epoch, position = divmod(number, order.samples)
                lane = position % order.lanes
                if epoch != current_epoch:
                    current_epoch = epoch
                    lanes.clear()  # closes the files; this worker's lanes may be others in this epoch
                if lane not in lanes:
                    wanted = order.lane_samples(epoch, lane, number, self.rank, self.world)
                    lanes[lane] = read_lane(self.images.paths, wanted)
                samples.append(next(lanes[lane]))
            pixels = buffers.next(len(own), *self.cropping.shape, 3)
            yield _decode(samples, pixels, self.cropping.decoder(own), len(self.images.classes))


@dataclass(frozen=True)
class EvaluationParts:
    """Whole batches: this rank's share of all samples once, resized to shape = (height, width)."""

    images: ImageSet
    shape: tuple[int, int]
    batch: int
    rank: int
    world: int

    def __call__(self, worker: int, workers: int) -> Iterator[BatchPart]:
        ends = np.cumsum(self.images.counts)
        share = -(-int(ends[-1]) // (self.world * workers))
        first = (self.rank * workers + worker) * share
        samples = self._read(np.arange(first, min(first + share, int(ends[-1]))), ends)
        for start in range(0, share, self.batch):
            count = min(self.batch, share - start)
            # A buffer of its own: these pixels are handed out without a copy.
            pixels = _PixelBuffers().next(count, *self.shape, 3)
            chosen = list(islice(samples, count))
            yield _decode(
                chosen, pixels, lambda _, jpeg: decode_evaluation(jpeg, self.shape), len(self.images.classes)
            )

    def _read(self, numbers: np.ndarray, ends: np.ndarray) -> Iterator[Encoded]:
        """The samples with these ascending numbers, counted through all shards, which end at `ends`."""
        shards = np.searchsorted(ends, numbers, side="right")
        for shard in np.unique(shards).tolist():
            first = ends[shard] - self.images.counts[shard]
            yield from read_shard(self.images.paths[shard], numbers[shards == shard] - first)


class WorkerParts(IterableDataset):
    """Runs `parts(worker, workers)` in a worker process; a UserError there becomes the last part."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[BatchPart]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:  # Ctrl-C and Slurm signal all processes; the training process saves, then ends these
            exit_with_parent()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
        try:
            yield from self.parts(worker, workers)
        except UserError as error:  # raising it across processes would print a traceback
            yield BatchPart(torch.empty(0), torch.empty(0), [], str(error))


def _decode(
    samples: Sequence[Encoded],
    buffer: torch.Tensor,
    decode: Callable[[int, bytes], np.ndarray],
    classes: int,
) -> BatchPart:
    """Decode the samples into `buffer`; surplus places become zeros with the label IGNORED."""
    pixels, labels = buffer.numpy(), np.full(len(buffer), IGNORED, np.int64)
    pixels[len(samples) :] = 0
    skipped = []
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
