"""Documents to tokens in other processes, the results in the order of the documents."""

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from parallel.errors import UserError
from trainer.data.prepare.pool import serve_parent
from trainer.data.text.tokenizer import build_encoding

if TYPE_CHECKING:
    import tiktoken

PositionT = TypeVar("PositionT")


class Encoded(NamedTuple):
    """What some documents became: ids uint16, the separator after each document; document counts."""

    train: np.ndarray
    validation: np.ndarray
    train_documents: int
    validation_documents: int


def in_validation(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: its hash decides, wherever it stands."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def encode(encoding: "tiktoken.Encoding", texts: list[str], share: float) -> Encoded:
    """Encode documents; <|endoftext|> inside a text is text like any other."""
    ids: dict[bool, list[np.ndarray]] = {False: [np.empty(0, np.uint16)], True: [np.empty(0, np.uint16)]}
    counts = {False: 0, True: 0}
    separator = np.array([encoding.eot_token], np.uint16)
    for text in texts:
        split = in_validation(text, share)
        counts[split] += 1
        ids[split] += [encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16), separator]
    return Encoded(np.concatenate(ids[False]), np.concatenate(ids[True]), counts[False], counts[True])


def encode_all(
    chunks: Iterable[tuple[list[str], PositionT]], ranks: dict[bytes, int], share: float, workers: int
) -> Iterator[tuple[Encoded, PositionT]]:
    """Encode chunks of documents in `workers` processes (0: in this one), in order.

    At most three chunks per process are under way. Raises UserError when a process dies.
    """
    if workers == 0:
        encoding = build_encoding(ranks)
        yield from ((encode(encoding, texts, share), position) for texts, position in chunks)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(ranks, share)
    )
    waiting: deque[tuple[Future[Encoded], Any]] = deque()
    try:
        for texts, position in chunks:
            waiting.append((pool.submit(_encode_here, texts), position))
            if len(waiting) >= 3 * workers:
                future, place = waiting.popleft()
                yield future.result(), place
        while waiting:
            future, place = waiting.popleft()
            yield future.result(), place
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} encoding processes died, perhaps for want of memory; "
            "run the command again with fewer --workers to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_encoding: "tiktoken.Encoding | None" = None  # of a worker process
_share = 0.0


def _start(ranks: dict[bytes, int], share: float) -> None:
    global _encoding, _share
    serve_parent()
    _encoding, _share = build_encoding(ranks), share


def _encode_here(texts: list[str]) -> Encoded:
    assert _encoding is not None
    return encode(_encoding, texts, _share)
