"""Files whose every block has a checksum, so that any range of bytes is verified when it is read.

The checksums of FILE.safetensors, crc32 in four bytes each, are in FILE.crc32; theirs is kept elsewhere.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from parallel.errors import UserError

BLOCK = 1 << 14  # bytes; a reader reads whole ones
_SPAN = 64  # blocks read at once


class Damaged(UserError):
    """A file of a checkpoint is not what was written."""


class BlockWriter:
    """Writes a new file from front to end, and to the disk when closed; raises OSError."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._path = path
        self.size = 0
        self._crcs: list[int] = []
        self._crc = self._filled = 0

    def write(self, data: memoryview | bytes) -> None:
        view = memoryview(data).cast("B")
        try:
            at = 0
            while at < len(view):
                at += self._file.write(view[at:])
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise
        self.size += len(view)
        at = 0
        while at < len(view):
            end = min(len(view), at + BLOCK - self._filled)
            self._crc = zlib.crc32(view[at:end], self._crc)
            self._filled += end - at
            at = end
            if self._filled == BLOCK:
                self._end_block()

    def close(self) -> int:
        """Flush file and checksums to the disk; returns the checksum of the checksums."""
        if self._filled:
            self._end_block()
        with self._file:
            os.fsync(self._file.fileno())
        checksums = np.array(self._crcs, "<u4").tobytes()
        write_durably(self._path.with_suffix(".crc32"), checksums)
        return zlib.crc32(checksums)

    def _end_block(self) -> None:
        self._crcs.append(self._crc)
        self._crc = self._filled = 0

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


class BlockReader:
    """Reads ranges of a file of `size` bytes and compares every block it touches with its checksum.

    `checksum` is that of the checksums. Raises Damaged, with the file's name, for a file that is missing, cut
    or changed. `bytes_read` counts what came from the file. Without `verify` only the size is checked.
    """

    def __init__(self, path: Path, size: int, checksum: int, verify: bool = True) -> None:
        self._path, self._size, self._verify = path, size, verify
        if verify:
            checksums = path.with_suffix(".crc32")
            data = read_whole(checksums)
            if zlib.crc32(data) != checksum or len(data) != 4 * -(-size // BLOCK):
                raise Damaged(f"{checksums.name}: is not what was written")
            self._crcs = np.frombuffer(data, "<u4").tolist()
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise Damaged(f"{path.name}: {_reason(error)}") from None
        self.bytes_read = 0
        self._buffer, self._first, self._end = bytearray(_SPAN * BLOCK), 0, 0  # blocks in the buffer
        found = os.fstat(self._file.fileno()).st_size
        if found != size:
            self.close()
            raise Damaged(f"{path.name}: has {found} bytes of {size}")

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on."""
        done, stop = 0, start + len(target)
        if start < 0 or stop > self._size:
            raise Damaged(f"{self._path.name}: has no bytes {start} to {stop}")
        while start < stop:
            block = start // BLOCK
            if not self._first <= block < self._end:
                self._load(block, min(block + _SPAN, -(-stop // BLOCK)))
            count = min(stop, self._end * BLOCK) - start
            at = start - self._first * BLOCK
            target[done : done + count] = memoryview(self._buffer)[at : at + count]
            start, done = start + count, done + count

    def _load(self, first: int, end: int) -> None:
        self._first = self._end = 0
        count = min(end * BLOCK, self._size) - first * BLOCK
        view, got = memoryview(self._buffer)[:count], 0
        while got < count:
            try:
                more = os.preadv(self._file.fileno(), [view[got:]], first * BLOCK + got)
            except OSError as error:
                raise Damaged(f"{self._path.name}: {_reason(error)}") from None
            if not more:
                raise Damaged(f"{self._path.name}: was cut while it was read")
            got += more
        self.bytes_read += count
        for number in range(first, end) if self._verify else ():
            at = (number - first) * BLOCK
            if zlib.crc32(view[at : at + BLOCK]) != self._crcs[number]:
                raise Damaged(f"{self._path.name}: bytes from {number * BLOCK} on are not what was written")
        self._first, self._end = first, end

    def close(self) -> None:
        self._file.close()


def read_whole(path: Path) -> bytes:
    """A small file; raises Damaged."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name}: {_reason(error)}") from None


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file and flush it to the disk; raises OSError with its name."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _reason(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
