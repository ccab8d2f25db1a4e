"""How fast images come out of shards, beside what Pillow alone would give: `translution bench data`."""

import multiprocessing
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import numpy as np

from trainer.data.images.imagenet import Imagenet, ImagenetConfig
from trainer.data.images.jpeg import DRAWS, UNREADABLE, decode_training
from trainer.data.images.loader import AHEAD
from trainer.data.images.manifest import check_shards, read_manifest
from trainer.data.images.shards import read_shard
from trainer.reporting.table import Table

_BATCH = 64
_ROUNDS = 5
_SCALE = (0.08, 1.0)


def bench_data(path: Path, workers: int, image_size: int, seconds: float) -> Table:
    """Images per second of the training loader over the shards in `path`, and of bare Pillow.

    Bare Pillow: as many processes decode and crop the same JPEGs out of memory, in the same way,
    and throw the pixels away. Both are measured in turns, each `seconds` long, for the load of a
    machine changes; medians count, of the ratio too.
    Raises UserError for a folder that cannot be used.
    """
    manifest = read_manifest(path)
    check_shards(path, manifest)
    jpegs = _some_jpegs(path)
    config = ImagenetConfig.model_validate({"path": path, "workers": workers, "crop_scale": _SCALE})
    source = Imagenet(config, image_size, len(manifest.classes), 0)
    shards, bare, ratios = [], [], []
    for _ in range(_ROUNDS):
        shards.append(_loader_rate(source, seconds))
        bare.append(_bare_rate(jpegs, workers, image_size, seconds))
        ratios.append(shards[-1] / bare[-1])
    table = Table(f"{path}: images per second at {image_size} pixels, {workers} processes")
    table.put("from shards", "images/s", f"{median(shards):,.0f}")
    table.put("bare Pillow", "images/s", f"{median(bare):,.0f}")
    table.put("ratio", "images/s", f"{median(ratios):.2f}")
    return table


def _some_jpegs(path: Path, most: int = 512) -> list[bytes]:
    """JPEGs from as many shards as it takes."""
    found: list[bytes] = []
    for shard in read_manifest(path).shards:
        wanted = range(min(shard.samples, most - len(found)))
        found += [sample.jpeg for sample in read_shard(path / shard.file, wanted)]
    return found


def _loader_rate(source: Imagenet, seconds: float) -> float:
    batches = source.train_batches(0, _BATCH)  # whose processes end with this function
    for _ in range(AHEAD + 1):  # until none is left of what was begun before anybody asked
        next(batches)
    start, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        images += len(next(batches).targets)
    return images / passed


def _bare_rate(jpegs: list[bytes], workers: int, image_size: int, seconds: float) -> float:
    context = multiprocessing.get_context()  # as the DataLoader starts its processes
    barrier, rates = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_decode, args=(jpegs, worker, image_size, seconds, barrier, rates))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def _decode(
    jpegs: list[bytes], worker: int, image_size: int, seconds: float, barrier: Barrier, rates: Queue
) -> None:
    random = np.random.default_rng(worker)
    barrier.wait()
    start, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        jpeg = jpegs[random.integers(len(jpegs))]
        try:
            decode_training(jpeg, image_size, random.random(DRAWS), _SCALE, True)
        except UNREADABLE:
            continue
        images += 1
    rates.put(images / passed)
