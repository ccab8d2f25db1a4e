"""Read chosen samples from shards, webdataset's tar files of `.jpg` and `.cls`."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from webdataset.tariterators import group_by_keys

from parallel.errors import UserError
from trainer.data.images.order import LaneSamples
from trainer.errors import machine_error


class Encoded(NamedTuple):
    """A sample of a shard: "shard: key" for messages, the JPEG, and the label as text."""

    name: str
    jpeg: bytes
    label: bytes


def read_shard(path: Path, wanted: Sequence[int] | np.ndarray) -> Iterator[Encoded]:
    """The samples with the numbers `wanted` (ascending) of a shard, in one pass.

    Raises UserError naming the file when it is missing, truncated, or has fewer samples.
    """
    remaining = {int(number) for number in wanted}
    last = max(remaining, default=-1)
    number, key = -1, None

    def members() -> Iterator[dict[str, Any]]:
        nonlocal number, key
        with tarfile.open(path, "r:") as tar:  # seeks past unwanted members
            while (member := tar.next()) is not None:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue] (it keeps every member)
                stem = member.name.partition(".")[0]
                if stem != key:
                    number, key = number + 1, stem
                if number > last:
                    return
                if number in remaining:
                    file = tar.extractfile(member)
                    yield {"fname": member.name, "data": file.read() if file else b"", "__url__": path.name}

    found = 0
    try:
        for sample in group_by_keys(members()):
            found += 1
            name = f"{path.name}: {sample['__key__']}"
            yield Encoded(name, sample.get("jpg", b""), sample.get("cls", b""))
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: truncated or not a tar file: {error.args[0]}") from None
    except OSError as error:
        raise machine_error(error, path, "be read") from None
    if found < len(remaining):
        raise UserError(
            f"{path}: truncated: {number + 1} samples, its manifest says at least {last + 1}; "
            "copy or prepare it again"
        )


def read_lane(paths: Sequence[Path], wanted: LaneSamples) -> Iterator[Encoded]:
    """The wanted samples of a lane in their order; each shard is read once, from front to back.

    Keeps no more samples in memory than the order's shuffle buffer.
    """
    samples = _in_line_order(paths, wanted)
    buffer: dict[int, Encoded] = {}
    for position in wanted.line.tolist():
        while position not in buffer:
            read, sample = next(samples)
            buffer[read] = sample
        yield buffer.pop(position)


def _in_line_order(paths: Sequence[Path], wanted: LaneSamples) -> Iterator[tuple[int, Encoded]]:
    by_line = np.argsort(wanted.line)
    shard, index, line = wanted.shard[by_line], wanted.index_in_shard[by_line], wanted.line[by_line]
    cuts = np.flatnonzero(np.diff(shard)) + 1
    for part in np.split(np.arange(len(line)), cuts):
        if len(part):
            samples = read_shard(paths[int(shard[part[0]])], index[part])
            yield from zip(line[part].tolist(), samples, strict=True)
