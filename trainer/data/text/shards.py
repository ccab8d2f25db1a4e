"""Write shards of tokens, and read them as one memory-mapped sequence."""

import hashlib
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from parallel.errors import UserError
from trainer.data.text.manifest import TOKEN_BYTES, Shard, Split

_TOKEN = np.dtype("<u2")
_BLOCK = 1 << 24


class Tokens(Protocol):
    """A sequence of token ids with random access."""

    def __len__(self) -> int: ...

    def windows(self, starts: Sequence[int], length: int) -> np.ndarray:
        """The ids at [start, start + length) for each start, int64 [starts, length]."""
        ...

    def prefetch(self, starts: Sequence[int], length: int) -> None:
        """Start reading these windows in the background."""
        ...


class ShardTokens:
    """The shards of `split` in `folder` as one memory-mapped sequence.

    Raises UserError for an id that is not below `vocabulary`.
    """

    def __init__(self, folder: Path, split: Split, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.paths = [folder / shard.file for shard in split.shards]
        self._ends = np.cumsum([0, *(shard.tokens for shard in split.shards)])
        maps = [np.memmap(path, _TOKEN, "r") for path in self.paths]
        self._ids = [np.asarray(ids) for ids in maps]  # slicing a memmap is slow
        self._pages: list[mmap.mmap] = [ids._mmap for ids in maps]  # pyright: ignore

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: Sequence[int], length: int) -> np.ndarray:
        ids = np.empty((len(starts), length), np.int64)
        if not ids.size:
            return ids
        for row, shard, first in zip(ids, *self._locate(starts, length), strict=True):
            part = self._ids[shard][first : first + length]
            row[: len(part)] = part
            while len(part) < len(row):  # it continues in the next shard
                row, shard = row[len(part) :], shard + 1
                part = self._ids[shard][: len(row)]
                row[: len(part)] = part
        if ids.max() >= self.vocabulary:
            row, column = np.argwhere(ids >= self.vocabulary)[0].tolist()
            (shard,), (place,) = self._locate([starts[row] + column], 1)
            raise UserError(
                f"{self.paths[shard]}: token {ids[row, column]} at {place:,} is outside the vocabulary "
                f"of {self.vocabulary:,}; prepare the data again"
            )
        return ids

    def prefetch(self, starts: Sequence[int], length: int) -> None:
        for shard, first in zip(*self._locate(starts, length), strict=True):
            page = first * TOKEN_BYTES // mmap.PAGESIZE * mmap.PAGESIZE
            stop = min(first + length, len(self._ids[shard])) * TOKEN_BYTES
            self._pages[shard].madvise(mmap.MADV_WILLNEED, page, stop - page)

    def _locate(self, starts: Sequence[int], length: int) -> tuple[list[int], list[int]]:
        """The shard of each window's first token, and that token's index in it."""
        first = np.asarray(starts)
        assert len(first)
        assert first.min() >= 0
        assert first.max() + length <= len(self)
        shard = np.searchsorted(self._ends[1:], first, side="right")
        return shard.tolist(), (first - self._ends[shard]).tolist()


class ShardWriter:
    """Appends tokens to NAME-00000.bin, NAME-00001.bin … of `shard_tokens` tokens each.

    `split` describes what has been appended; a writer created with an earlier `split` deletes what was
    written after it and continues from there. Raises OSErrors as they are.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, split: Split) -> None:
        self.folder, self.name, self.shard_tokens = folder, name, shard_tokens
        self.documents, self.tokens = split.documents, split.tokens
        self._finished = list(split.shards)
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._in_shard = 0
        if self._finished and self._finished[-1].tokens < shard_tokens:
            self._reopen(self._finished.pop())
        for shard in self._finished:
            self._check_unchanged(shard, (folder / shard.file).stat().st_size == shard.tokens * TOKEN_BYTES)
        kept = {shard.file for shard in self._finished} | ({self._open_name} if self._file else set())
        for path in folder.glob(f"{name}-*.bin"):
            if path.name not in kept:
                path.unlink()

    @property
    def _open_name(self) -> str:
        return f"{self.name}-{len(self._finished):05d}.bin"

    @property
    def split(self) -> Split:
        """What has been appended; after `sync` it is on the disk."""
        shards = list(self._finished)
        if self._file:
            shards.append(Shard(file=self._open_name, tokens=self._in_shard, sha256=self._hash.hexdigest()))
        return Split(documents=self.documents, tokens=self.tokens, shards=shards)

    def append(self, ids: np.ndarray, documents: int) -> None:
        """Append ids (uint16) of `documents` documents."""
        self.documents += documents
        self.tokens += len(ids)
        while len(ids):
            if self._file is None:
                self._file = (self.folder / self._open_name).open("wb")
            part, ids = np.split(ids, [self.shard_tokens - self._in_shard])
            content = part.astype(_TOKEN, copy=False).tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._in_shard += len(part)
            if self._in_shard == self.shard_tokens:
                self.sync()
                self._finished = self.split.shards
                self._file.close()
                self._file, self._in_shard, self._hash = None, 0, hashlib.sha256()

    def sync(self) -> None:
        """Flush everything appended to the disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the open file; data since the last `sync` may be lost."""
        if self._file:
            with suppress(OSError):  # a full disk fails again
                self._file.close()

    def _reopen(self, shard: Shard) -> None:
        self._file = (self.folder / shard.file).open("r+b")
        self._in_shard = shard.tokens
        self._file.truncate(shard.tokens * TOKEN_BYTES)
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
        self._check_unchanged(shard, self._hash.hexdigest() == shard.sha256)

    def _check_unchanged(self, shard: Shard, same: bool) -> None:
        if not same:
            raise UserError(
                f"{self.folder / shard.file}: has changed since it was written; "
                f"delete {self.folder} to start over"
            )
