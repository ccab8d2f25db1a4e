"""From class folders of images to webdataset shards with a manifest: `translution prepare imagenet`.

The files are shuffled once and divided among a number of shards that is fixed at the start, so any
process can write any shard at any time, with the same bytes. Each finished shard is a line of
progress.jsonl; after a kill the next command writes those that are missing there.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from parallel.errors import UserError
from trainer.data.images.jpeg import UNREADABLE, as_jpeg
from trainer.data.images.manifest import ImageManifest, check_shards, read_manifest
from trainer.data.images.prepare.class_folders import ImageFolder, find_images
from trainer.data.images.prepare.prepare_log import (
    PROGRESS,
    Finished,
    Plan,
    Settings,
    read_log,
    write_log,
)
from trainer.data.images.prepare.shard_writer import ShardJob, read_image, write_shard
from trainer.data.prepare.output_folder import (
    MANIFEST,
    WRITE_AGAIN,
    check_same_settings,
    write_json,
    writer_lock,
)
from trainer.data.prepare.pool import map_in_processes
from trainer.data.sampling import Stream, permutation
from trainer.errors import machine_error
from trainer.reporting.progress import Progress

_ENCODED_FIRST = 256  # files, to estimate the number of shards
_REPORTED_SKIPS = 5


def prepare(
    source: Path,
    out: Path,
    resize_short: int | None = None,
    shard_mb: float = 256,
    seed: int = 0,
    workers: int = 1,
    class_list: Path | None = None,
) -> ImageManifest:
    """Write the images below `source` to shards in `out`; resumes an interrupted call.

    resize_short  greatest short side in pixels; larger images are shrunk. None: keep all sizes
    shard_mb      approximate size of a shard in MiB
    workers       processes; 0: this one

    Images that cannot be read are skipped and listed in the manifest. Raises UserError for folders
    that cannot be used, for an `out` with other files, and when the disk is full; repeat the call to
    resume.
    """
    folder = find_images(source, class_list)
    settings: Settings = {
        "input_files": len(folder.files),
        "input_sha256": folder.checksum(),
        "resize_short": resize_short,
        "shard_mb": f"{shard_mb:g}",
        "seed": seed,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / MANIFEST).exists():
            manifest = read_manifest(out)
            check_same_settings(out, manifest.settings, settings)
            check_shards(out, manifest)
            return manifest
        with writer_lock(out):
            started = read_log(out, settings)
            plan, finished = started or (_plan(folder, settings, resize_short, shard_mb), [])
            _check_free_space(out, plan, finished)
            _write_shards(folder, out, plan, finished, resize_short, seed, workers)
            manifest = _manifest(folder, settings, finished)
            write_json(out / MANIFEST, manifest.model_dump())
            (out / PROGRESS).unlink()
    except OSError as error:
        raise machine_error(error, error.filename or out, WRITE_AGAIN) from None
    return manifest


def _write_shards(
    folder: ImageFolder,
    out: Path,
    plan: Plan,
    finished: list[Finished],
    resize_short: int | None,
    seed: int,
    workers: int,
) -> None:
    """Write the shards that are not in `finished`, and add them to it and to progress.jsonl."""
    write_log(out, plan, finished)
    bounds = _bounds(len(folder.files), plan.shards)
    order = permutation(seed, Stream.IMAGE_PREPARATION, len(folder.files))
    written = {record.number for record in finished}

    def jobs() -> Iterator[ShardJob]:
        for number in range(plan.shards):
            if number not in written:
                samples = [
                    (position, folder.files[order[position]], folder.labels[order[position]])
                    for position in range(bounds[number], bounds[number + 1])
                ]
                yield ShardJob(number, out, folder.path, samples, resize_short)

    done = before = sum(record.shard.samples + len(record.skipped) for record in finished)
    skips = sum(len(record.skipped) for record in finished)
    start = time.monotonic()
    with (
        Progress(len(folder.files), done) as progress,
        (out / PROGRESS).open("a") as log,
        closing(map_in_processes(write_shard, jobs(), workers)) as results,
    ):
        for result in results:
            finished.append(result)
            log.write(result.model_dump_json() + "\n")
            log.flush()
            os.fsync(log.fileno())
            for image in result.skipped[: max(0, _REPORTED_SKIPS - skips)]:
                progress.say(f"skipped: {image.file}: {image.why}")
            skips += len(result.skipped)
            done += result.shard.samples + len(result.skipped)
            rate = (done - before) / max(time.monotonic() - start, 1e-3)
            progress.show(done, f"{done:,} images in {len(finished)} of {plan.shards} shards, {rate:,.0f}/s")


def _plan(folder: ImageFolder, settings: Settings, resize_short: int | None, shard_mb: float) -> Plan:
    """The number of shards, estimated from the mean size of some files after encoding."""
    order = permutation(0, Stream.IMAGE_PREPARATION, len(folder.files))[:_ENCODED_FIRST]
    sizes = []
    for index in order.tolist():
        with suppress(*UNREADABLE):
            sizes.append(len(as_jpeg(read_image(folder.path / folder.files[index]), resize_short)))
    if not sizes:
        raise UserError(f"--input {folder.path}: none of {len(order)} files tried is an image")
    # Each of a sample's two files has a tar header of 512 bytes and is padded to a multiple of 512.
    total = round(len(folder.files) * (float(np.mean(sizes)) + 2048))
    shards = max(1, round(total / (shard_mb * 2**20)))
    return Plan(settings=settings, shards=min(shards, len(folder.files)), bytes=total)


def _bounds(files: int, shards: int) -> list[int]:
    return [number * files // shards for number in range(shards + 1)]


def _check_free_space(out: Path, plan: Plan, finished: list[Finished]) -> None:
    needed = plan.bytes - sum(record.shard.bytes for record in finished)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"--out {out}: needs about {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free; "
            "free some space"
        )


def _manifest(folder: ImageFolder, settings: Settings, finished: list[Finished]) -> ImageManifest:
    finished = sorted(finished, key=lambda record: record.number)
    shards = [record.shard for record in finished if record.shard.samples]
    if not shards:
        raise UserError(f"--input {folder.path}: has no usable image; all {len(folder.files)} were skipped")
    return ImageManifest(
        classes=folder.classes,
        samples=sum(shard.samples for shard in shards),
        settings=settings,
        skipped=[image for record in finished for image in record.skipped],
        shards=shards,
    )


def summary(manifest: ImageManifest) -> str:
    """The result in one line."""
    total = sum(shard.bytes for shard in manifest.shards)
    skipped = f"; skipped {len(manifest.skipped)}, listed in {MANIFEST}" if manifest.skipped else ""
    return (
        f"{manifest.samples:,} images of {len(manifest.classes):,} classes in {len(manifest.shards)} shards, "
        f"{total / 1e9:,.2f} GB{skipped}"
    )
