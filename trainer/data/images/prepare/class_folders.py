"""Images in class folders: which there are, and which class has which number."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from parallel.errors import UserError
from trainer.errors import machine_error

_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


class ImageFolder(NamedTuple):
    """Image files, their names sorted and relative to `path`, with the class number of each."""

    path: Path
    classes: list[str]
    files: list[str]
    labels: list[int]

    def checksum(self) -> str:
        """SHA-256 over the names of classes and files."""
        names = "\0".join([*self.classes, "", *self.files])
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def find_images(path: Path, class_list: Path | None = None) -> ImageFolder:
    """The images below `path`, one folder for each class.

    The classes are the folders' names in alphabetic order (for ImageNet the WordNet ids, so the
    usual numbers), or the lines of `class_list`. Raises UserError for folders that do not exist,
    that hold no image, or whose name is not in the list.
    """
    if not path.is_dir():
        raise UserError(f"--input {path}: no such folder")
    try:
        folders = sorted(entry.name for entry in os.scandir(path) if _is_class(entry))
        if not folders:
            raise UserError(
                f"--input {path}: holds no class folders, as n01440764/; unpack the archives first"
            )
        classes = _read_classes(class_list) if class_list else folders
        number = {name: label for label, name in enumerate(classes)}
        files: list[str] = []
        labels: list[int] = []
        for folder in folders:
            if folder not in number:
                raise UserError(f"--input {path}: the class folder {folder} is not in --classes {class_list}")
            found = sorted(entry.name for entry in os.scandir(path / folder) if _is_image(entry))
            if not found:
                raise UserError(
                    f"--input {path}: the class folder {folder} holds no image; fill or remove it"
                )
            files += [f"{folder}/{name}" for name in found]
            labels += [number[folder]] * len(found)
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
        raise UserError(f"--classes {path}: must name at least one class, each on a line of its own, once")
    return names
