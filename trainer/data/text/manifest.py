"""The manifest of a prepared corpus, and checks of its shards against it."""

from pathlib import Path
from typing import Literal

from trainer.data.prepare.output_folder import Record, check_shard, load_manifest

TOKEN_BYTES = 2  # shards hold little-endian uint16
Verify = Literal["size", "checksum"]


class Shard(Record):
    """One file of tokens, TOKEN_BYTES each."""

    file: str
    tokens: int
    sha256: str


class Split(Record):
    """The shards of one split, in document order; all but the last have the same length."""

    documents: int
    tokens: int
    shards: list[Shard]


class Tokenizer(Record):
    """The tokenizer of the shards; `separator` is the id after every document."""

    name: str
    vocabulary: int
    separator: int
    sha256: str


class TextManifest(Record):
    """Contents of a corpus; written last, so a folder that has one is complete."""

    format: Literal["translution-text-1"] = "translution-text-1"
    tokenizer: Tokenizer
    settings: dict[str, int | float | str]
    skipped: dict[str, int]
    train: Split
    validation: Split


def read_manifest(folder: Path) -> TextManifest:
    """The manifest in `folder`; raises UserError where there is none or it cannot be used."""
    return load_manifest(folder, TextManifest, "openwebtext", "text")


def check_shards(folder: Path, split: Split, verify: Verify) -> None:
    """Compare shards with the manifest by size, or by checksum (reads everything); raises UserError."""
    for shard in split.shards:
        sha256 = shard.sha256 if verify == "checksum" else None
        check_shard(folder / shard.file, shard.tokens * TOKEN_BYTES, sha256)
