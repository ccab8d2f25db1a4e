"""The manifest of prepared images: what each shard holds, and whether it still does."""

from pathlib import Path
from typing import Literal

from parallel.errors import UserError
from trainer.data.prepare.output_folder import MANIFEST, Record, load_manifest
from trainer.errors import machine_error


class Shard(Record):
    """One tar file; `bytes` is its size."""

    file: str
    samples: int
    bytes: int
    sha256: str


class Skipped(Record):
    """An input image that is in no shard, and why."""

    file: str
    why: str


class ImageManifest(Record):
    """What `translution prepare imagenet` made; written last, so that it marks a whole set.

    A sample's label is the place of its class in `classes`.
    """

    format: Literal["translution-images-1"] = "translution-images-1"
    classes: list[str]
    samples: int
    settings: dict[str, int | str | None]
    skipped: list[Skipped]
    shards: list[Shard]


def read_manifest(folder: Path) -> ImageManifest:
    """The manifest in `folder`; raises UserError where there is none or it cannot be used."""
    manifest = load_manifest(folder, ImageManifest, "imagenet", "images")
    counted = sum(shard.samples for shard in manifest.shards)
    if manifest.samples != counted or counted == 0:
        raise UserError(
            f"{folder / MANIFEST}: samples is {manifest.samples}, its shards hold {counted}; prepare it again"
        )
    return manifest


def check_shards(folder: Path, manifest: ImageManifest) -> None:
    """Raise UserError for a shard that is missing or has another size than the manifest says."""
    for shard in manifest.shards:
        path = folder / shard.file
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UserError(f"{path}: this shard of {MANIFEST} is missing") from None
        except OSError as error:
            raise machine_error(error, path, "be read") from None
        if size != shard.bytes:
            what = "truncated" if size < shard.bytes else "not the file it was"
            raise UserError(f"{path}: {what}: has {size:,} bytes, {MANIFEST} says {shard.bytes:,}")
