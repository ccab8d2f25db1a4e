"""The `data` sections for text: a prepared corpus, and the bundled book."""

import lzma
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from models import ModelConfig
from parallel.errors import UserError
from trainer.data.text.manifest import Verify, check_shards, read_manifest
from trainer.data.text.shards import ShardTokens
from trainer.data.text.windows import Corpus, TextSource

_BYTE_VALUES = 256


class OpenWebTextConfig(BaseModel):
    """A folder written by `translution prepare openwebtext`; verify: check shards by size or checksum.

    path    folder of the shards
    verify  size: compare the shards' sizes; checksum: read and compare all
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["openwebtext"] = "openwebtext"
    path: Path
    verify: Verify = "size"

    def check(self, model: ModelConfig) -> None:
        """Raise UserError for a model that cannot take this data."""
        _check_gpt(model, self.kind)

    def build(self, model: ModelConfig, seed: int) -> TextSource:
        """The source; raises UserError for a folder that cannot be used with this model."""
        assert model.kind == "gpt"
        manifest = read_manifest(self.path)
        tokenizer = manifest.tokenizer
        if tokenizer.vocabulary > model.vocabulary:
            raise UserError(
                f"model.vocabulary={model.vocabulary}: the tokens in {self.path} need {tokenizer.vocabulary}"
            )
        for split in (manifest.train, manifest.validation):
            check_shards(self.path, split, self.verify)
        train, validation = (
            ShardTokens(self.path, split, tokenizer.vocabulary)
            for split in (manifest.train, manifest.validation)
        )
        _check_length(str(self.path), len(train), len(validation), model.tokens)
        return TextSource(Corpus(train, validation, tokenizer.separator), model.tokens, seed)


class BookConfig(BaseModel):
    """Moby Dick as bytes, bundled with the package; its last part is the validation set.

    validation_share  share of the book, its last part, for validation
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["book"] = "book"
    validation_share: float = Field(0.05, gt=0, lt=1)

    def check(self, model: ModelConfig) -> None:
        """Raise UserError for a model that cannot take this data."""
        _check_gpt(model, self.kind)
        if model.kind == "gpt" and model.vocabulary < _BYTE_VALUES:
            raise UserError(
                f"model.vocabulary={model.vocabulary}: data.kind=book needs {_BYTE_VALUES}, one per byte"
            )

    def build(self, model: ModelConfig, seed: int) -> TextSource:
        """The source; raises UserError when the text is too short for the model's sequences."""
        assert model.kind == "gpt"
        book = np.frombuffer(lzma.decompress(_book()), np.uint8)
        validation = max(1, round(len(book) * self.validation_share))
        corpus = Corpus(ArrayTokens(book[:-validation]), ArrayTokens(book[-validation:]), ord("\n"))
        _check_length("the book", len(corpus.train), len(corpus.validation), model.tokens)
        return TextSource(corpus, model.tokens, seed)


class ArrayTokens:
    """Tokens in memory; see `Tokens`."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, starts: Sequence[int], length: int) -> np.ndarray:
        return self.ids[np.asarray(starts)[:, None] + np.arange(length)].astype(np.int64)

    def prefetch(self, starts: Sequence[int], length: int) -> None:
        """Does nothing."""


def _check_gpt(model: ModelConfig, data: str) -> None:
    if model.kind != "gpt":
        raise UserError(f"model.kind={model.kind}: data.kind={data} is text and needs gpt")


def _check_length(where: str, train: int, validation: int, context: int) -> None:
    if train < 2 * context:
        raise UserError(
            f"model.tokens={context}: {where} has {train:,} training tokens; "
            f"at least {2 * context:,} are needed"
        )
    if not validation:
        raise UserError(f"{where}: has no validation tokens; prepare it with a larger --validation-share")


def _book() -> bytes:
    return (files("trainer.data") / "assets" / "moby_dick.txt.xz").read_bytes()
