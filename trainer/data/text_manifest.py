"""The manifest of a prepared corpus: what its shards hold, and whether they still do."""

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from parallel.errors import UserError
from trainer.errors import machine_error

MANIFEST = "manifest.json"
TOKEN_BYTES = 2  # shards hold little-endian uint16
Verify = Literal["size", "checksum"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shard(_Part):
    """One file of tokens; its size is twice `tokens` bytes."""

    file: str
    tokens: int
    sha256: str


class Split(_Part):
    """The shards of one split in the order of the documents; all but the last are equally long."""

    documents: int
    tokens: int
    shards: list[Shard]


class Tokenizer(_Part):
    """Which tokens the shards hold; `separator` stands after every document."""

    name: str
    vocabulary: int
    separator: int
    sha256: str


class Manifest(_Part):
    """What `translution prepare openwebtext` made; written last, so that it marks a whole corpus."""

    format: Literal["translution-text-1"] = "translution-text-1"
    tokenizer: Tokenizer
    settings: dict[str, int | float | str]
    skipped: dict[str, int]
    train: Split
    validation: Split


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; raises UserError where there is none or it cannot be used."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it with: translution prepare openwebtext")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: holds no {MANIFEST}; it is not prepared, or not to the end: "
            "run translution prepare openwebtext (again), which goes on where it stopped"
        ) from None
    except OSError as error:
        raise machine_error(error, path, "be read") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: not a manifest of text: {key} {problem['msg']}".strip()) from None


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


def write_json(path: Path, values: dict) -> None:
    """Replace a file by `values` so that not even a power cut leaves a part of it."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
