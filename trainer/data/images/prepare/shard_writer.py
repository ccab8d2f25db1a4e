"""Writing one shard of images, in whatever process."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from webdataset.writer import TarWriter

from trainer.data.images.jpeg import UNREADABLE, as_jpeg
from trainer.data.images.manifest import Shard, Skipped
from trainer.data.images.prepare.prepare_log import AGAIN, Finished
from trainer.data.text.manifest import file_sha256
from trainer.errors import machine_error


class Piece(NamedTuple):
    """What one process needs to make one shard."""

    number: int
    out: Path
    source: Path
    samples: list[tuple[int, str, int]]  # (place in the shuffled order, file, label)
    resize_short: int | None


def write_shard(piece: Piece) -> Finished:
    """Make one shard, whole or not at all."""
    path = piece.out / f"shard-{piece.number:06d}.tar"
    # A process of a killed run may still be at this shard.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    skipped: list[Skipped] = []
    try:
        with temporary.open("wb") as file:
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for place, name, label in piece.samples:
                    content = read_image(piece.source / name)
                    try:
                        jpeg = as_jpeg(content, piece.resize_short)
                    except UNREADABLE as error:
                        skipped.append(Skipped(file=name, why=_why(error)))
                        continue
                    key = f"{place:08d}-{Path(name).stem[:64].replace('.', '_')}"
                    tar.write({"__key__": key, "jpg": jpeg, "cls": str(label).encode()})
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        digest = file_sha256(temporary)
        temporary.replace(path)
    except OSError as error:
        raise machine_error(error, path, AGAIN) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    shard = Shard(file=path.name, samples=len(piece.samples) - len(skipped), bytes=size, sha256=digest)
    return Finished(number=piece.number, shard=shard, skipped=skipped)


def read_image(path: Path) -> bytes:
    """A file's content; nothing where it may not be read, which then counts as no image."""
    try:
        return path.read_bytes()
    except PermissionError:
        return b""
    except OSError as error:
        raise machine_error(error, path, "be read; run the command again to go on") from None


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "no image" if "cannot identify image file" in text else text or type(error).__name__
