"""The `data` sections for text: a prepared corpus, and the embedded book."""

import lzma
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from parallel.errors import UserError
from trainer.data.text.manifest import Verify, check_shards, read_manifest
from trainer.data.text.shards import ShardTokens
from trainer.data.text.windows import Corpus, TextSource

if TYPE_CHECKING:
    from models import ModelConfig

BYTES = 256


class OpenWebTextConfig(BaseModel):
    """A folder made by `translution prepare openwebtext`; verify: compare sizes or checksums."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["openwebtext"] = "openwebtext"
    path: Path
    verify: Verify = "size"

    def check(self, model: "ModelConfig") -> None:
        """Raise UserError where a model cannot take this data."""
        needs_gpt(model, self.kind)

    def build(self, model: "ModelConfig", seed: int) -> TextSource:
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
    """Moby Dick as bytes, which the package brings along; its last part is for validation."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["book"] = "book"
    validation_share: float = Field(0.05, gt=0, lt=1)

    def check(self, model: "ModelConfig") -> None:
        """Raise UserError where a model cannot take this data."""
        needs_gpt(model, self.kind)
        if model.kind == "gpt" and model.vocabulary < BYTES:
            raise UserError(
                f"model.vocabulary={model.vocabulary}: data.kind=book needs {BYTES}, one per byte"
            )

    def build(self, model: "ModelConfig", seed: int) -> TextSource:
        """The source; raises UserError when the model's sequences are longer than the parts."""
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

    def expect(self, starts: Sequence[int], length: int) -> None:
        """They are here already."""


def needs_gpt(model: "ModelConfig", data: str) -> None:
    """Raise UserError unless the model is a language net."""
    if model.kind != "gpt":
        raise UserError(f"model.kind={model.kind}: data.kind={data} is text and needs gpt")


def _check_length(where: str, train: int, validation: int, context: int) -> None:
    if train < 2 * context:
        raise UserError(
            f"model.tokens={context}: {where} has {train:,} training tokens, two windows are needed"
        )
    if not validation:
        raise UserError(f"{where}: holds no validation tokens; prepare it with a larger --validation-share")


def _book() -> bytes:
    return (files("trainer.data") / "assets" / "moby_dick.txt.xz").read_bytes()
