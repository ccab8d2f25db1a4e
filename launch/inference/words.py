"""Text to a language net's tokens and back, as the run's data has them."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models import GPTConfig
from parallel.errors import UserError
from trainer.config.run import DataConfig
from trainer.data.text.manifest import read_manifest
from trainer.data.text.tokenizer import build_encoding, describe, load_ranks

_BYTES = 256


@dataclass(frozen=True)
class Words:
    """A net's vocabulary.

    count      ids that mean something; a net's vocabulary may be padded
    separator  the id before a document
    """

    count: int
    separator: int
    encode: Callable[[str], list[int]]
    content: Callable[[int], bytes]

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of each id as it comes; a character that is not complete waits for its last byte."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for each in ids:
            yield decoder.decode(self.content(each))
        yield decoder.decode(b"", final=True)


def words_of(model: GPTConfig, data: DataConfig | None, bpe: Path | None) -> Words:
    """Bytes for a net of the book, or of 256 ids; else GPT-2's BPE, from the file `bpe` or downloaded.

    Raises UserError for a file that is not the one that the run's data was prepared with.
    """
    in_bytes = data.kind == "book" if data is not None else False
    if bpe is None and (in_bytes or model.vocabulary == _BYTES):
        return Words(_BYTES, ord("\n"), lambda text: list(text.encode()), lambda one: bytes([one]))
    ranks = load_ranks(bpe)
    tokenizer = describe(ranks)
    where = f"--bpe {bpe or 'gpt2'}"
    if tokenizer.vocabulary > model.vocabulary:
        raise UserError(
            f"{where}: has {tokenizer.vocabulary} tokens, model.vocabulary={model.vocabulary} has no room"
        )
    if _prepared_with(data) not in (None, tokenizer.sha256):
        raise UserError(f"{where}: is not the tokenizer that the run's data was prepared with")
    encoding = build_encoding(ranks)
    return Words(
        tokenizer.vocabulary,
        tokenizer.separator,
        lambda text: encoding.encode(text, allowed_special="all"),
        encoding.decode_single_token_bytes,
    )


def _prepared_with(data: DataConfig | None) -> str | None:
    """The checksum of the tokenizer of prepared text, where it can still be read."""
    if data is None or data.kind != "openwebtext":
        return None
    try:
        return read_manifest(data.path).tokenizer.sha256
    except UserError:
        return None
