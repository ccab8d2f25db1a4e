"""Write one shard of images, in any process."""

from pathlib import Path
from typing import NamedTuple

from webdataset.writer import TarWriter

from trainer.atomic_write import atomic_write
from trainer.data.images.jpeg import UNREADABLE, as_jpeg
from trainer.data.images.manifest import Shard, Skipped
from trainer.data.images.prepare.prepare_log import Finished
from trainer.data.prepare.output_folder import WRITE_AGAIN, file_sha256
from trainer.errors import machine_error


class ShardJob(NamedTuple):
    """What a process needs to write one shard."""

    number: int
    out: Path
    source: Path
    samples: list[tuple[int, str, int]]  # (position in the shuffled order, file, label)
    resize_short: int | None


def write_shard(job: ShardJob) -> Finished:
    """Write one shard, completely or not at all; raises UserError where the disk is full."""
    path = job.out / f"shard-{job.number:06d}.tar"
    skipped: list[Skipped] = []

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for position, name, label in job.samples:
                content = read_image(job.source / name)
                try:
                    jpeg = as_jpeg(content, job.resize_short)
                except UNREADABLE as error:
                    skipped.append(Skipped(file=name, why=_reason(error)))
                    continue
                key = f"{position:08d}-{Path(name).stem[:64].replace('.', '_')}"
                tar.write({"__key__": key, "jpg": jpeg, "cls": str(label).encode()})

    atomic_write(path, fill, durable=True, doing=WRITE_AGAIN)
    shard = Shard(
        file=path.name,
        samples=len(job.samples) - len(skipped),
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )
    return Finished(number=job.number, shard=shard, skipped=skipped)


def read_image(path: Path) -> bytes:
    """A file's content; empty, and so no image, where permission is denied."""
    try:
        return path.read_bytes()
    except PermissionError:
        return b""
    except OSError as error:
        raise machine_error(error, path, "be read; run the command again to resume") from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "no image" if "cannot identify image file" in text else text or type(error).__name__
