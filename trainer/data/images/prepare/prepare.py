"""From class folders of images to webdataset shards with a manifest: `translution prepare imagenet`.

The files are shuffled once and dealt to a number of shards that is fixed at the start, so that each
shard can be made by any process at any time and has the same bytes. A finished shard is a line of
progress.jsonl; a run after a kill makes those that have none.
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
from trainer.data.images.manifest import (
    ImageManifest,
    check_shards,
    read_manifest,
)
from trainer.data.images.prepare.class_folders import ImageFolder, find_images
from trainer.data.images.prepare.prepare_log import (
    AGAIN,
    PROGRESS,
    Finished,
    Plan,
    Settings,
    read_record,
    write_record,
)
from trainer.data.images.prepare.shard_writer import Piece, read_image, write_shard
from trainer.data.prepare.output_folder import MANIFEST, check_same_settings, only_writer, write_json
from trainer.data.prepare.pool import each_piece
from trainer.data.sampling import permutation
from trainer.errors import machine_error
from trainer.reporting.progress import Progress

_STREAM = 3
_MEASURED = 256  # files encoded beforehand, to tell how many shards it will be
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
    """Write the images below `source` to shards in `out`, or go on with what was begun there.

    resize_short  images with a longer short side, in pixels, are made smaller; None: none is
    shard_mb      size of a shard in MiB, about
    workers       processes; 0: this one

    Images that cannot be read are skipped and listed in the manifest. Raises UserError for folders
    that cannot be used, for an `out` that holds something else, and when the disk is full; then the
    same call goes on.
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
        with only_writer(out):
            plan, finished = read_record(out, settings) or (
                _plan(folder, settings, resize_short, shard_mb),
                [],
            )
            _check_room(out, plan, finished)
            _make(folder, out, plan, finished, resize_short, seed, workers)
            manifest = _manifest(folder, settings, finished)
            write_json(out / MANIFEST, manifest.model_dump())
            (out / PROGRESS).unlink()
    except OSError as error:
        raise machine_error(error, error.filename or out, AGAIN) from None
    return manifest


def _make(
    folder: ImageFolder,
    out: Path,
    plan: Plan,
    finished: list[Finished],
    resize_short: int | None,
    seed: int,
    workers: int,
) -> None:
    """Make the shards that are not in `finished`, and add them there and to progress.jsonl."""
    write_record(out, plan, finished)
    bounds = _bounds(len(folder.files), plan.shards)
    order = permutation(seed, _STREAM, len(folder.files))
    made = {one.number for one in finished}

    def pieces() -> Iterator[Piece]:
        for number in range(plan.shards):
            if number not in made:
                places = range(bounds[number], bounds[number + 1])
                samples = [
                    (place, folder.files[order[place]], folder.labels[order[place]]) for place in places
                ]
                yield Piece(number, out, folder.path, samples, resize_short)

    done = before = sum(one.shard.samples + len(one.skipped) for one in finished)
    skips = sum(len(one.skipped) for one in finished)
    start = time.monotonic()
    with Progress(len(folder.files), done) as progress, (out / PROGRESS).open("a") as record:
        results = each_piece(write_shard, pieces(), workers)
        with closing(results):
            for result in results:
                finished.append(result)
                record.write(result.model_dump_json() + "\n")
                record.flush()
                os.fsync(record.fileno())
                for one in result.skipped[: max(0, _REPORTED_SKIPS - skips)]:
                    progress.say(f"skipped: {one.file}: {one.why}")
                skips += len(result.skipped)
                done += result.shard.samples + len(result.skipped)
                rate = (done - before) / max(time.monotonic() - start, 1e-3)
                progress.show(
                    done, f"{done:,} images in {len(finished)} of {plan.shards} shards, {rate:,.0f}/s"
                )


def _plan(folder: ImageFolder, settings: Settings, resize_short: int | None, shard_mb: float) -> Plan:
    """How many shards it takes, by the mean size of some files as they will be written."""
    order = permutation(0, _STREAM, len(folder.files))[:_MEASURED]
    sizes = []
    for index in order.tolist():
        with suppress(*UNREADABLE):
            sizes.append(len(as_jpeg(read_image(folder.path / folder.files[index]), resize_short)))
    if not sizes:
        raise UserError(f"--input {folder.path}: none of {len(order)} files tried is an image")
    # A tar file has a header of 512 bytes for each of a sample's two files, and fills up to 512.
    total = round(len(folder.files) * (float(np.mean(sizes)) + 2048))
    shards = max(1, round(total / (shard_mb * 2**20)))
    return Plan(settings=settings, shards=min(shards, len(folder.files)), bytes=total)


def _bounds(files: int, shards: int) -> list[int]:
    return [number * files // shards for number in range(shards + 1)]


def _check_room(out: Path, plan: Plan, finished: list[Finished]) -> None:
    needed = plan.bytes - sum(one.shard.bytes for one in finished)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"--out {out}: about {needed / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free; "
            "free some space"
        )


def _manifest(folder: ImageFolder, settings: Settings, finished: list[Finished]) -> ImageManifest:
    finished = sorted(finished, key=lambda one: one.number)
    shards = [one.shard for one in finished if one.shard.samples]
    if not shards:
        raise UserError(f"--input {folder.path}: holds no usable image; all {len(folder.files)} were skipped")
    return ImageManifest(
        classes=folder.classes,
        samples=sum(shard.samples for shard in shards),
        settings=settings,
        skipped=[skip for one in finished for skip in one.skipped],
        shards=shards,
    )


def summary(manifest: ImageManifest) -> str:
    """What became of the images, in a line."""
    total = sum(shard.bytes for shard in manifest.shards)
    skipped = f"; skipped {len(manifest.skipped)}, listed in {MANIFEST}" if manifest.skipped else ""
    return (
        f"{manifest.samples:,} images of {len(manifest.classes):,} classes in {len(manifest.shards)} shards, "
        f"{total / 1e9:,.2f} GB{skipped}"
    )
