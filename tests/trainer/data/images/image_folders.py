"""Class folders and shards of small real images."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.data.images.manifest import ImageManifest
from trainer.data.images.prepare.prepare import prepare

ASSETS = sorted((Path(__file__).parents[3] / "assets" / "imagenet").glob("*.jpg"))


@cache
def photo(number: int) -> Image.Image:
    """A part of one of the real images, 56 × 48 pixels, different for every number."""
    whole = Image.open(ASSETS[number % len(ASSETS)]).convert("RGB")
    left, upper = 3 * (number // len(ASSETS)), 2 * (number // len(ASSETS))
    return whole.resize((56, 48), box=(left, upper, left + 84, upper + 72))


def class_folders(root: Path, classes: int, images: int = 1) -> Path:
    """Write `classes` folders n00000000, n00000001 … with `images` JPEGs each."""
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(images):
            photo(label * images + number).save(folder / f"{number}.JPEG", quality=90)
    return root


def shards(root: Path, classes: int, per_shard: float = 4.0) -> tuple[Path, ImageManifest]:
    """Shards of different lengths with one image per class, so that its label identifies a sample."""
    source = class_folders(root / "in", classes)
    for label in range(0, classes, 5):  # skipped, so some shards are shorter
        (source / f"n{label:08d}" / "torn.JPEG").write_bytes(b"\xff\xd8\xff torn")
    size = float(np.mean([path.stat().st_size for path in source.glob("*/0.JPEG")])) + 2048
    manifest = prepare(source, root / "out", shard_mb=per_shard * 1.2 * size / 2**20, workers=0)
    return root / "out", manifest


def labels(batches) -> list[int]:
    """The labels of some batches."""
    return torch.cat([batch.targets for batch in batches]).tolist()
