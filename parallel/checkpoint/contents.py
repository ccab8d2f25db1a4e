"""What is in a checkpoint: `index.json`, and beside each rank's files a manifest, `rank-N.json`.

Nothing but JSON and plain numbers: nothing that is read here, or by storage.py, can run code.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, StringConstraints, ValidationError

from parallel.checkpoint.blocks import BLOCK, Damaged, read_whole, write_durably

INDEX = "index.json"
BUFFER = "buffer"  # the kind of buffers; those of parameters are the engines'

# The names of safetensors.
DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}

_DataName = Annotated[str, StringConstraints(pattern=r"^rank-\d{4,}\.[a-z_]+\.safetensors$")]
_ManifestName = Annotated[str, StringConstraints(pattern=r"^rank-\d{4,}\.json$")]
_Sizes = tuple[NonNegativeInt, ...]
_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Boxes(_Strict):
    """Boxes of one shape, one of each entry of a bank or one of a parameter.

    kind     "weight", a moment, or "buffer"
    entries  of a bank; None: a parameter or buffer
    whole    the shape of an entry, or of the parameter
    at       bytes into the file where the first begins; `stride`: bytes from one to the next
    """

    kind: str
    name: str
    entries: tuple[NonNegativeInt, ...] | None = None
    whole: _Sizes
    offsets: _Sizes
    sizes: _Sizes
    dtype: Literal["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL"]
    file: _DataName
    at: NonNegativeInt
    stride: NonNegativeInt


class DataFile(_Strict):
    """A file of tensors: its size in bytes, and the checksum of its blocks' checksums (blocks.py)."""

    bytes: NonNegativeInt
    crc32: NonNegativeInt


class Manifest(_Strict):
    """What one rank wrote."""

    block: Literal[16384] = BLOCK
    files: dict[_DataName, DataFile]
    boxes: tuple[Boxes, ...]


class ManifestFile(_Strict):
    """A manifest's name, size in bytes and checksum."""

    name: _ManifestName
    bytes: NonNegativeInt
    crc32: NonNegativeInt


class Index(_Strict):
    """The checkpoint as a whole.

    samples      consumed so far: the position in the data, whatever the mesh
    mesh         sizes of the axes that it was saved on
    parameters, buffers   shapes of the whole net's
    run          config, versions: what the trainer wants to find again; plain JSON
    """

    format: Literal[1] = 1
    step: NonNegativeInt
    samples: NonNegativeInt
    mesh: dict[str, PositiveInt]
    parameters: dict[str, _Sizes]
    buffers: dict[str, _Sizes]
    run: dict[str, Any]
    manifests: tuple[ManifestFile, ...]


@dataclass(frozen=True)
class Contents:
    """The index and all manifests of the checkpoint in `folder`."""

    folder: Path
    index: Index
    manifests: list[Manifest]

    @property
    def bytes(self) -> int:
        """Of all data files."""
        return sum(file.bytes for manifest in self.manifests for file in manifest.files.values())

    def check_net(self, parameters: Mapping[str, tuple[int, ...]], buffers: Mapping[str, tuple[int, ...]]):
        """Raises ValueError, naming the first mismatch, unless this is a checkpoint of a net with these."""
        for what, saved, own in (
            ("parameter", self.index.parameters, parameters),
            ("buffer", self.index.buffers, buffers),
        ):
            for name in sorted(set(saved) ^ set(own)):
                raise ValueError(
                    f"{what} {name} is only in {'the checkpoint' if name in saved else 'the net'}"
                )
            for name, shape in own.items():
                if saved[name] != tuple(shape):
                    raise ValueError(f"{what} {name} is {saved[name]} in the checkpoint, {tuple(shape)} here")


def is_whole(folder: Path) -> bool:
    """Whether a save was finished there; its files may be damaged."""
    return (folder / INDEX).is_file()


def read_contents(folder: Path) -> Contents:
    """Reads and checks index and manifests; raises Damaged, naming the file."""
    index = read_index(folder)
    manifests = []
    for file in index.manifests:
        data = read_whole(folder / file.name)
        if len(data) != file.bytes or zlib.crc32(data) != file.crc32:
            raise Damaged(f"{file.name}: is not what was written")
        manifests.append(_parsed(Manifest, data, file.name))
    return Contents(folder, index, manifests)


def read_index(folder: Path) -> Index:
    """Reads and checks `index.json`; raises Damaged."""
    try:
        sealed = json.loads(read_whole(folder / INDEX))
        text, crc = _canonical(sealed["checkpoint"]), sealed["crc32"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Damaged(f"{INDEX}: is not what was written") from None
    if zlib.crc32(text) != crc:
        raise Damaged(f"{INDEX}: is not what was written")
    return _parsed(Index, text, INDEX)


def write_manifest(folder: Path, rank: int, manifest: Manifest) -> ManifestFile:
    """Writes `rank-N.json` to the disk; raises OSError."""
    data = manifest.model_dump_json(exclude_defaults=True).encode()
    name = f"rank-{rank:04d}.json"
    write_durably(folder / name, data)
    return ManifestFile(name=name, bytes=len(data), crc32=zlib.crc32(data))


def write_index(folder: Path, index: Index) -> None:
    """Writes `index.json`, under another name first: a reader finds a whole one or none. Raises OSError."""
    values = index.model_dump(mode="json")
    new = folder / f".{INDEX}.new"
    sealed = {"checkpoint": values, "crc32": zlib.crc32(_canonical(values))}
    write_durably(new, json.dumps(sealed, indent=1).encode())
    new.rename(folder / INDEX)
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _parsed(model: type[_Model], text: str | bytes, name: str) -> _Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"{name}: {where}: {first['msg']}") from None
