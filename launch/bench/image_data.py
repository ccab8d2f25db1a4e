"""Throughput of the image loader, compared with Pillow alone: `translution bench data`."""

import multiprocessing
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import numpy as np

from trainer.data.images.imagenet import Imagenet, ImagenetConfig
from trainer.data.images.jpeg import DRAWS, UNREADABLE, decode_training
from trainer.data.images.manifest import check_shards, read_manifest
from trainer.data.images.parts import PREFETCH
from trainer.data.images.shards import read_shard
from trainer.reporting.table import Table

_BATCH = 64
_ROUNDS = 5
_SCALE = (0.08, 1.0)


def bench_data(path: Path, workers: int, image_size: int, seconds: float) -> Table:
    """Images per second of the training loader over the shards in `path`, and of Pillow alone.

    Pillow alone: the same number of processes decode and crop the same JPEGs from memory, in the same
    way, and discard the pixels. The two alternate, `seconds` each, because a machine's load varies;
    rates and ratio are medians. Raises UserError for a folder that cannot be used.
    """
    manifest = read_manifest(path)
    check_shards(path, manifest)
    jpegs = _read_jpegs(path)
    config = ImagenetConfig.model_validate({"path": path, "workers": workers, "crop_scale": _SCALE})
    source = Imagenet(config, (image_size, image_size), len(manifest.classes), 0)
    loader_rates, pillow_rates = [], []
    for _ in range(_ROUNDS):
        loader_rates.append(_loader_rate(source, seconds))
        pillow_rates.append(_pillow_rate(jpegs, workers, image_size, seconds))
    ratios = [loader / pillow for loader, pillow in zip(loader_rates, pillow_rates, strict=True)]
    table = Table(f"{path}: images per second at {image_size} pixels, {workers} processes")
    table.put("from shards", "images/s", f"{median(loader_rates):,.0f}")
    table.put("bare Pillow", "images/s", f"{median(pillow_rates):,.0f}")
    table.put("ratio", "images/s", f"{median(ratios):.2f}")
    return table


def _read_jpegs(path: Path, limit: int = 512) -> list[bytes]:
    """The first `limit` JPEGs of the shards."""
    jpegs: list[bytes] = []
    for shard in read_manifest(path).shards:
        wanted = range(min(shard.samples, limit - len(jpegs)))
        jpegs += [sample.jpeg for sample in read_shard(path / shard.file, wanted)]
    return jpegs


def _loader_rate(source: Imagenet, seconds: float) -> float:
    batches = source.train_batches(0, _BATCH)  # its processes end with this function
    for _ in range(PREFETCH + 1):  # discard what was prepared before the clock started
        next(batches)
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += len(next(batches).targets)
    return images / elapsed


def _pillow_rate(jpegs: list[bytes], workers: int, image_size: int, seconds: float) -> float:
    context = multiprocessing.get_context()  # the start method of the DataLoader
    barrier, rates = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_decode_for, args=(jpegs, worker, image_size, seconds, barrier, rates))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def _decode_for(
    jpegs: list[bytes], worker: int, image_size: int, seconds: float, barrier: Barrier, rates: Queue
) -> None:
    random = np.random.default_rng(worker)
    barrier.wait()
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        jpeg = jpegs[random.integers(len(jpegs))]
        try:
            decode_training(jpeg, (image_size, image_size), random.random(DRAWS), _SCALE, True)
        except UNREADABLE:
            continue
        images += 1
    rates.put(images / elapsed)
