"""The manifest of prepared images, and checks of its shards against it."""

from pathlib import Path
from typing import Literal

from parallel.errors import UserError
from trainer.data.prepare.output_folder import MANIFEST, Record, check_shard, load_manifest


class Shard(Record):
    """One tar file; `bytes` is its size."""

    file: str
    samples: int
    bytes: int
    sha256: str


class Skipped(Record):
    """An input image that was left out, and why."""

    file: str
    why: str


class ImageManifest(Record):
    """Contents of a set of images; written last, so a folder that has one is complete.

    A label is an index into `classes`.
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
            f"{folder / MANIFEST}: samples is {manifest.samples}, but its shards hold {counted}; "
            "prepare the data again"
        )
    return manifest


def check_shards(folder: Path, manifest: ImageManifest) -> None:
    """Raise UserError for a shard that is missing or has another size than in the manifest."""
    for shard in manifest.shards:
        check_shard(folder / shard.file, shard.bytes)
