"""Images in class folders, and the label of each class."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from parallel.errors import UserError
from trainer.errors import machine_error

_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


class ImageFolder(NamedTuple):
    """Image files, sorted and relative to `path`, and the label of each: its class's index in `classes`."""

    path: Path
    classes: list[str]
    files: list[str]
    labels: list[int]

    def checksum(self) -> str:
        """SHA-256 of the names of classes and files."""
        names = "\0".join([*self.classes, "", *self.files])
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def find_images(path: Path, class_list: Path | None = None) -> ImageFolder:
    """The images below `path`, one folder for each class.

    Classes are the folders' names in alphabetical order (for ImageNet the WordNet ids, which gives the
    usual labels), or the lines of `class_list`. Raises UserError for folders that do not exist, have
    no image, or are not in the list.
    """
    if not path.is_dir():
        raise UserError(f"--input {path}: no such folder")
    try:
        folders = sorted(entry.name for entry in os.scandir(path) if _is_class(entry))
        if not folders:
            raise UserError(
                f"--input {path}: has no class folders such as n01440764/; unpack the archives first"
            )
        classes = _read_classes(class_list) if class_list else folders
        label_of = {name: label for label, name in enumerate(classes)}
        files: list[str] = []
        labels: list[int] = []
        for folder in folders:
            if folder not in label_of:
                raise UserError(f"--input {path}: the class folder {folder} is not in --classes {class_list}")
            found = sorted(entry.name for entry in os.scandir(path / folder) if _is_image(entry))
            if not found:
                raise UserError(f"--input {path}: the class folder {folder} has no image; fill or remove it")
            files += [f"{folder}/{name}" for name in found]
            labels += [label_of[folder]] * len(found)
    except OSError as error:
        raise machine_error(error, error.filename or path, "be read") from None
    return ImageFolder(path, classes, files, labels)


def _is_class(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_dir()


def _is_image(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name.lower().endswith(_SUFFIXES)


def _read_classes(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(f"--classes {path}: cannot be read: {why}") from None
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes {path}: must list at least one class, one per line, each once")
    return names
