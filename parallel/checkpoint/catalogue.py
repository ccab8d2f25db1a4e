"""Where in a checkpoint's files the boxes of a parameter or a bank entry lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from parallel.checkpoint.blocks import BlockReader, Damaged
from parallel.checkpoint.contents import TORCH_DTYPES, Boxes, Contents

_ONCE = 1 << 22  # bytes
_ENTRY = re.compile(r"(.*)\[(\d+)\]")


class Place(NamedTuple):
    """A saved box: its file, the byte where it begins, its shape and type of numbers."""

    file: str
    at: int
    sizes: tuple[int, ...]
    dtype: str


class Catalogue:
    """The boxes of a checkpoint by what they are of, such as `weight/layers.0.mixer.q_bank[17]`.

    verify   compare what is read of the files with their checksums
    """

    def __init__(self, contents: Contents, verify: bool = True) -> None:
        self.contents, self._verify = contents, verify
        self._files = {name: file for each in contents.manifests for name, file in each.files.items()}
        self._boxes: dict[str, list[tuple[Boxes, dict[int, int]]]] = {}
        for manifest in contents.manifests:
            for boxes in manifest.boxes:
                places = {entry: number for number, entry in enumerate(boxes.entries or ())}
                self._boxes.setdefault(f"{boxes.kind}/{boxes.name}", []).append((boxes, places))

    def is_bank(self, tensor: str) -> bool:
        """Whether `KIND/NAME` was saved entry by entry."""
        return any(boxes.entries is not None for boxes, _ in self._boxes.get(tensor, ()))

    def dtype(self, tensor: str) -> torch.dtype:
        """The type of the numbers of `KIND/NAME`; raises KeyError."""
        return TORCH_DTYPES[self._boxes[tensor][0][0].dtype]

    def find(
        self, keys: Iterable[str]
    ) -> tuple[dict[str, TensorStorageMetadata], dict[MetadataIndex, Place]]:
        """For DCP: the saved boxes of each key, and the place of each box."""
        found: dict[str, TensorStorageMetadata] = {}
        places: dict[MetadataIndex, Place] = {}
        for key in keys:
            tensor, number = self._box_numbers(key)
            for boxes, numbers in self._boxes.get(tensor, ()):
                box = 0 if number is None else numbers.get(number)
                if box is None or (number is None) != (boxes.entries is None):
                    continue
                dtype, offset, sizes = TORCH_DTYPES[boxes.dtype], torch.Size(boxes.offsets), boxes.sizes
                if len(offset) != len(sizes) or len(offset) != len(boxes.whole):
                    raise Damaged(f"{boxes.file}: {key} has boxes of another dimension")
                if key not in found:
                    found[key] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(boxes.whole), [])
                found[key].chunks.append(ChunkStorageMetadata(offset, torch.Size(sizes)))
                at = boxes.at + box * boxes.stride
                end = at + torch.Size(sizes).numel() * dtype.itemsize
                if boxes.file not in self._files or end > self._files[boxes.file].bytes:
                    raise Damaged(f"{boxes.file}: has no bytes for {key}")
                places[MetadataIndex(key, offset)] = Place(boxes.file, at, sizes, boxes.dtype)
        return found, places

    def open(self, file: str) -> BlockReader:
        """Raises Damaged."""
        own = self._files[file]
        return BlockReader(self.contents.folder / file, own.bytes, own.crc32, self._verify)

    def _box_numbers(self, key: str) -> tuple[str, int | None]:
        match = _ENTRY.fullmatch(key)
        return (match[1], int(match[2])) if match else (key, None)


def damages(contents: Contents, thorough: bool) -> Iterator[str]:
    """What is wrong with the data files, a line for each; `thorough` reads every byte."""
    for manifest in contents.manifests:
        for name, file in manifest.files.items():
            try:
                reader = BlockReader(contents.folder / name, file.bytes, file.crc32, verify=thorough)
                try:
                    for at in range(0, file.bytes if thorough else 0, _ONCE):
                        reader.read_into(at, memoryview(bytearray(min(_ONCE, file.bytes - at))))
                finally:
                    reader.close()
            except Damaged as damage:
                yield str(damage)
