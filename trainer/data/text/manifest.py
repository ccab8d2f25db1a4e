"""The manifest of a prepared corpus: what its shards hold, and whether they still do."""

import hashlib
from pathlib import Path
from typing import Literal

from parallel.errors import UserError
from trainer.data.prepare.output_folder import MANIFEST, Record, load_manifest
from trainer.errors import machine_error

TOKEN_BYTES = 2  # shards hold little-endian uint16
Verify = Literal["size", "checksum"]


class Shard(Record):
    """One file of tokens; its size is twice `tokens` bytes."""

    file: str
    tokens: int
    sha256: str


class Split(Record):
    """The shards of one split in the order of the documents; all but the last are equally long."""

    documents: int
    tokens: int
    shards: list[Shard]


class Tokenizer(Record):
    """Which tokens the shards hold; `separator` stands after every document."""

    name: str
    vocabulary: int
    separator: int
    sha256: str


class Manifest(Record):
    """What `translution prepare openwebtext` made; written last, so that it marks a whole corpus."""

    format: Literal["translution-text-1"] = "translution-text-1"
    tokenizer: Tokenizer
    settings: dict[str, int | float | str]
    skipped: dict[str, int]
    train: Split
    validation: Split


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; raises UserError where there is none or it cannot be used."""
    return load_manifest(folder, Manifest, "openwebtext", "text")


def check_shards(folder: Path, split: Split, verify: Verify) -> None:
    """Compare the shards with the manifest, by size or (reading all) by checksum; raises UserError."""
    for shard in split.shards:
        path = folder / shard.file
        try:
            size = path.stat().st_size
            found = file_sha256(path) if verify == "checksum" else shard.sha256
        except FileNotFoundError:
            raise UserError(f"{path}: this shard of {MANIFEST} is missing") from None
        except OSError as error:
            raise machine_error(error, path, "be read") from None
        wanted = shard.tokens * TOKEN_BYTES
        if size != wanted:
            raise UserError(f"{path}: has {size:,} bytes, {MANIFEST} says {wanted:,}; prepare the data again")
        if found != shard.sha256:
            raise UserError(
                f"{path}: SHA-256 is {found[:12]}…, {MANIFEST} says {shard.sha256[:12]}…; "
                "prepare the data again"
            )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
