"""Documents to tokens."""

import hashlib
from typing import NamedTuple, TypeVar

import numpy as np
import tiktoken

PositionT = TypeVar("PositionT")


class Encoded(NamedTuple):
    """Tokens of some documents: ids uint16 with the separator after each document; document counts."""

    train: np.ndarray
    validation: np.ndarray
    train_documents: int
    validation_documents: int


def in_validation(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: decided by its hash, whatever its position."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class Encoder:
    """Encodes chunks of documents; <|endoftext|> inside a text is plain text.

    validation_share   fraction of the documents that goes to the validation split
    """

    def __init__(self, encoding: tiktoken.Encoding, validation_share: float) -> None:
        self.encoding, self.validation_share = encoding, validation_share

    def __call__(self, chunk: tuple[list[str], PositionT]) -> tuple[Encoded, PositionT]:
        """(texts, any position) → (their tokens, the same position)."""
        texts, position = chunk
        ids: dict[bool, list[np.ndarray]] = {split: [np.empty(0, np.uint16)] for split in (False, True)}
        counts = {False: 0, True: 0}
        separator = np.array([self.encoding.eot_token], np.uint16)
        for text in texts:
            split = in_validation(text, self.validation_share)
            counts[split] += 1
            tokens = self.encoding.encode_to_numpy(text, disallowed_special=())
            ids[split] += [tokens.astype(np.uint16), separator]
        encoded = Encoded(np.concatenate(ids[False]), np.concatenate(ids[True]), counts[False], counts[True])
        return encoded, position
