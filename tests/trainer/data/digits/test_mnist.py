"""Digits: the bundled subset, the original files, and damaged files."""

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from parallel.errors import UserError
from trainer.data.digits.idx import to_idx
from trainer.data.digits.mnist import IDX_FILES, Digits, bundle, load_digits, read_archive

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def digits() -> Digits:
    rng = np.random.default_rng(0)
    sizes = {"train": 12, "test": 5}
    return Digits(
        **{
            f"{split}_{part}": rng.integers(0, 10, (size, 28, 28)[: 3 if part == "images" else 1]).astype(
                np.uint8
            )
            for split, size in sizes.items()
            for part in ("images", "labels")
        }
    )


@pytest.fixture
def folder(tmp_path: Path, digits: Digits) -> Path:
    for field, (name, _) in IDX_FILES.items():
        (tmp_path / name).write_bytes(to_idx(getattr(digits, field)))
    return tmp_path


def same(one: Digits, other: Digits) -> bool:
    return all(np.array_equal(getattr(one, field), getattr(other, field)) for field in IDX_FILES)


def test_the_bundled_subset_is_large_enough_and_its_file_small_enough():
    digits = load_digits(None)
    assert len(digits.train_images) >= 10_000
    assert len(digits.test_images) >= 2_000
    assert np.bincount(digits.train_labels).min() > 1_000
    archive = files("trainer.data") / "assets" / "digits.tar.xz"
    assert len(archive.read_bytes()) < 3_000_000


def test_plain_and_compressed_idx_files_give_the_same_digits(folder: Path, digits: Digits):
    assert same(load_digits(folder), digits)
    for name, _ in IDX_FILES.values():
        plain = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    assert same(load_digits(folder), digits)


def test_the_bundle_has_evenly_spaced_digits(folder: Path, digits: Digits, tmp_path: Path):
    archive = tmp_path / "few.tar.xz"
    bundle(folder, archive, train=4, test=5)
    kept = read_archive(archive)
    assert np.array_equal(kept.train_images, digits.train_images[::3])
    assert np.array_equal(kept.test_labels, digits.test_labels)


def error_line(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_digits(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_or_file_is_named(folder: Path):
    assert f"data.path={folder / 'no'}: no such folder" in error_line(folder / "no")
    (folder / LABELS).unlink()
    assert f"file {LABELS} (or {LABELS}.gz) is missing" in error_line(folder)


def test_a_truncated_file_is_an_error_with_found_and_expected_sizes(folder: Path):
    path = folder / IMAGES
    path.write_bytes(path.read_bytes()[:-100])
    found = 12 * 28 * 28 - 100
    assert f"{path}: truncated, has {found} bytes of data, expected 12×28×28 = 9408" in error_line(folder)
    path.write_bytes(b"\0\0\x08")
    assert f"{path}: truncated, has 3 bytes" in error_line(folder)


def test_a_truncated_or_damaged_gzip_file_is_named(folder: Path):
    packed = gzip.compress((folder / IMAGES).read_bytes())
    (folder / IMAGES).unlink()
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(packed[: len(packed) // 2])
    assert f"{path}: truncated" in error_line(folder)
    path.write_bytes(b"this is not gzip")
    assert f"{path}: damaged or not a gzip file" in error_line(folder)


def test_a_wrong_magic_number_is_an_error_with_found_and_expected_number(folder: Path):
    (folder / IMAGES).write_bytes((folder / LABELS).read_bytes() + bytes(16))
    line = error_line(folder)
    assert f"{folder / IMAGES}: wrong magic number 0x00000801, expected 0x00000803" in line


def test_files_that_do_not_match_are_refused(folder: Path, digits: Digits):
    (folder / LABELS).write_bytes(to_idx(digits.test_labels))
    assert "has 12 images, its label file 5 labels" in error_line(folder)
    (folder / LABELS).write_bytes(to_idx(digits.train_labels + 9))
    assert "expected 0 to 9" in error_line(folder)
