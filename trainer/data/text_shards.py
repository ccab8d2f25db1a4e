"""Shards of tokens: written one after another, read as one memory-mapped sequence."""

import hashlib
import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from parallel.errors import UserError
from trainer.data.text_manifest import TOKEN_BYTES, Shard, Split

_TOKEN = np.dtype("<u2")
_BLOCK = 1 << 24


class Tokens(Protocol):
    """A sequence of token ids with random access."""

    def __len__(self) -> int: ...

    def windows(self, starts: Sequence[int], length: int) -> np.ndarray:
        """The ids at [start, start + length) for each start, int64 [starts, length]."""
        ...

    def expect(self, starts: Sequence[int], length: int) -> None:
        """Say that these windows are wanted soon; returns at once."""
        ...


class ShardTokens:
    """The shards of `split` in `folder` as one sequence; nothing is read before it is asked for.

    Raises UserError for an id that is not below `vocabulary`.
    """

    def __init__(self, folder: Path, split: Split, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.paths = [folder / shard.file for shard in split.shards]
        self._ends = list(accumulate(shard.tokens for shard in split.shards))
        maps = [np.memmap(path, _TOKEN, "r") for path in self.paths]
        self._ids = [np.asarray(ids) for ids in maps]  # slices of a memmap cost more than what they hold
        self._pages: list[mmap.mmap] = [ids._mmap for ids in maps]  # pyright: ignore

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def windows(self, starts: Sequence[int], length: int) -> np.ndarray:
        ids = np.empty((len(starts), length), np.int64)
        for row, start in zip(ids, starts, strict=True):
            done = 0
            for shard, first, last in self._places(start, start + length):
                row[done : done + last - first] = self._ids[shard][first:last]
                done += last - first
        if ids.size and ids.max() >= self.vocabulary:
            row, column = np.argwhere(ids >= self.vocabulary)[0].tolist()
            place = starts[row] + column
            shard, offset, _ = self._places(place, place + 1)[0]
            raise UserError(
                f"{self.paths[shard]}: token {ids[row, column]} at {offset:,} is above the vocabulary "
                f"of {self.vocabulary:,}; prepare the data again"
            )
        return ids

    def expect(self, starts: Sequence[int], length: int) -> None:
        for start in starts:
            for shard, first, last in self._places(start, start + length):
                begin = first * TOKEN_BYTES // mmap.PAGESIZE * mmap.PAGESIZE
                self._pages[shard].madvise(mmap.MADV_WILLNEED, begin, last * TOKEN_BYTES - begin)

    def _places(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(shard, first, last) of the parts of [start, stop)."""
        assert 0 <= start <= stop <= len(self)
        places = []
        while start < stop:
            shard = bisect_right(self._ends, start)
            begin = self._ends[shard - 1] if shard else 0
            last = min(stop, self._ends[shard])
            places.append((shard, start - begin, last - begin))
            start = last
        return places


class ShardWriter:
    """Appends tokens to NAME-00000.bin, NAME-00001.bin … of `shard_tokens` tokens each.

    `split` says what was appended until now; a writer made with an earlier `split` drops what was
    written after it and goes on from there. OSErrors are left to the caller.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, split: Split) -> None:
        self.folder, self.name, self.shard_tokens = folder, name, shard_tokens
        self.documents, self.tokens = split.documents, split.tokens
        self._whole = list(split.shards)
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._in_shard = 0
        if self._whole and self._whole[-1].tokens < shard_tokens:
            self._reopen(self._whole.pop())
        for shard in self._whole:
            self._check(shard, (folder / shard.file).stat().st_size == shard.tokens * TOKEN_BYTES)
        kept = {shard.file for shard in self._whole} | ({self._open_name} if self._file else set())
        for path in folder.glob(f"{name}-*.bin"):
            if path.name not in kept:
                path.unlink()

    @property
    def _open_name(self) -> str:
        return f"{self.name}-{len(self._whole):05d}.bin"

    @property
    def split(self) -> Split:
        """What was appended until now; true of the disk after `sync`."""
        shards = list(self._whole)
        if self._file:
            shards.append(Shard(file=self._open_name, tokens=self._in_shard, sha256=self._hash.hexdigest()))
        return Split(documents=self.documents, tokens=self.tokens, shards=shards)

    def append(self, ids: np.ndarray, documents: int) -> None:
        """Write ids (uint16) of `documents` documents."""
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
                self._whole = self.split.shards
                self._file.close()
                self._file, self._in_shard, self._hash = None, 0, hashlib.sha256()

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the open file back; what was not synced may be lost."""
        if self._file:
            with suppress(OSError):  # a full disk refuses the rest once more
                self._file.close()

    def _reopen(self, shard: Shard) -> None:
        self._file = (self.folder / shard.file).open("r+b")
        self._in_shard = shard.tokens
        self._file.truncate(shard.tokens * TOKEN_BYTES)
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
        self._check(shard, self._hash.hexdigest() == shard.sha256)

    def _check(self, shard: Shard, same: bool) -> None:
        if not same:
            raise UserError(
                f"{self.folder / shard.file}: is not what was written before; "
                f"delete {self.folder} to start over"
            )
