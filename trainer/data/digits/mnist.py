"""Handwritten digits: the bundled subset of MNIST, or the four original files."""

import io
import lzma
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from parallel.errors import UserError
from trainer.data.digits.idx import parse_idx, read_idx, to_idx

SIDE = 28
CLASSES = 10
IDX_FILES = {
    "train_images": ("train-images-idx3-ubyte", 3),
    "train_labels": ("train-labels-idx1-ubyte", 1),
    "test_images": ("t10k-images-idx3-ubyte", 3),
    "test_labels": ("t10k-labels-idx1-ubyte", 1),
}


@dataclass(frozen=True)
class Digits:
    """Images uint8 [count, 28, 28] and labels uint8 [count] of both splits."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits(path: Path | None) -> Digits:
    """The digits of the four IDX files (plain or .gz) in the folder `path`; None: the bundled subset.

    Raises UserError for a file that is missing, truncated, of another format, or that does not match
    the others.
    """
    if path is None:
        with as_file(files("trainer.data") / "assets" / "digits.tar.xz") as archive:
            return read_archive(archive)
    if not path.is_dir():
        raise UserError(f"data.path={path}: no such folder; expected a folder with the MNIST IDX files")
    return _checked(lambda name, ndim: read_idx(path, name, ndim), str(path))


@lru_cache(maxsize=1)
def read_archive(archive: Path) -> Digits:
    """The digits in an archive that `bundle` wrote; cached, and its arrays are read-only."""
    with tarfile.open(archive, "r:xz") as tar:
        raw = {member.name: tar.extractfile(member) for member in tar}
        contents = {name: file.read() for name, file in raw.items() if file is not None}
    return _checked(lambda name, ndim: parse_idx(contents[name], ndim, name), archive.name)


def _checked(read: Callable[[str, int], np.ndarray], where: str) -> Digits:
    digits = Digits(**{field: read(name, ndim) for field, (name, ndim) in IDX_FILES.items()})
    for split in ("train", "test"):
        images = getattr(digits, f"{split}_images")
        labels = getattr(digits, f"{split}_labels")
        name = IDX_FILES[f"{split}_images"][0]
        if images.shape[1:] != (SIDE, SIDE):
            size = "×".join(map(str, images.shape[1:]))
            raise UserError(f"{where}: {name} has images of {size}, expected {SIDE}×{SIDE}")
        if len(images) != len(labels) or len(images) == 0:
            raise UserError(
                f"{where}: {name} has {len(images)} images, its label file {len(labels)} labels; "
                "expected as many of both, at least 1"
            )
        if labels.max() >= CLASSES:
            raise UserError(f"{where}: {split} labels go to {labels.max()}, expected 0 to 9")
    return digits


def bundle(folder: Path, archive: Path, train: int = 16_000, test: int = 3_000) -> None:
    """Write evenly spaced digits of the full set in `folder` to a compressed `archive`."""
    digits = load_digits(folder)
    # lp and pb are 0 because pixels are bytes.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lp": 0, "pb": 0}]
    with (
        lzma.open(archive, "wb", filters=filters) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for field, (name, _) in IDX_FILES.items():
            array = getattr(digits, field)
            keep = train if field.startswith("train") else test
            content = to_idx(array[np.arange(keep) * len(array) // keep])
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    bundle(Path(sys.argv[1]), Path(sys.argv[2]))
