"""Weights from a checkpoint to safetensors files, some entries of a bank at a time."""

import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.pretrained.weights import CONFIG, INDEX, ONE_FILE
from models.transformer import ModelConfig
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import BUFFER, DTYPES
from parallel.checkpoint.load import read_part
from parallel.checkpoint.storage import memory_of
from parallel.engine.interface import WEIGHT
from parallel.sharding.layout import Shard
from trainer.errors import machine_error

FILE_BYTES = 5 * 10**9  # as the Hub's own files
_ONCE = 1 << 26  # bytes read at once, and at least one entry or row


@dataclass(frozen=True)
class _Tensor:
    name: str
    whole: Shard
    dtype: str
    bytes: int


def export_checkpoint(
    catalogue: Catalogue, net: ModelConfig, out: Path, file_bytes: int = FILE_BYTES
) -> None:
    """Write all weights and buffers to the file `out`, or, if it has no suffix, to files of `file_bytes` or
    less (but one tensor each) in a folder `out`, with the Hub's index and `config.json`.

    It appears under its name once it is complete. Raises Damaged, and UserError for what cannot be written.
    """
    tensors = _tensors(catalogue)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        if out.suffix:
            _write(unfinished, catalogue, tensors, net)
        else:
            unfinished.mkdir(parents=True)
            _write_folder(unfinished, catalogue, tensors, net, file_bytes)
        unfinished.rename(out)
    except OSError as error:
        raise machine_error(error, out, "be written") from None
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.unlink(missing_ok=True)


def _tensors(catalogue: Catalogue) -> list[_Tensor]:
    index, found = catalogue.contents.index, []
    for kind, shapes in ((WEIGHT, index.parameters), (BUFFER, index.buffers)):
        for name, shape in shapes.items():
            whole = Shard(tuple(shape), bank=catalogue.is_bank(f"{kind}/{name}"))
            dtype = catalogue.dtype(f"{kind}/{name}")
            found.append(_Tensor(name, whole, DTYPES[dtype], whole.numel * dtype.itemsize))
    return found


def _write_folder(
    folder: Path, catalogue: Catalogue, tensors: list[_Tensor], net: ModelConfig, file_bytes: int
) -> None:
    groups: list[list[_Tensor]] = []
    for tensor in tensors:
        if not groups or sum(each.bytes for each in groups[-1]) + tensor.bytes > file_bytes:
            groups.append([])
        groups[-1].append(tensor)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    names = [ONE_FILE] if len(groups) == 1 else names
    for name, group in zip(names, groups, strict=True):
        _write(folder / name, catalogue, group, net)
    if len(groups) > 1:
        files = {each.name: name for name, group in zip(names, groups, strict=True) for each in group}
        index = {"metadata": {"total_size": sum(each.bytes for each in tensors)}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(net.model_dump_json(indent=2) + "\n")


def _write(path: Path, catalogue: Catalogue, tensors: list[_Tensor], net: ModelConfig) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", CONFIG: net.model_dump_json()}}
    at = 0
    for each in tensors:
        ends = (at, at + each.bytes)
        header[each.name] = {"dtype": each.dtype, "shape": each.whole.full, "data_offsets": ends}
        at += each.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for each in tensors:
            for part in _parts(catalogue, each):
                file.write(memory_of(part))
        file.flush()
        os.fsync(file.fileno())


def _parts(catalogue: Catalogue, tensor: _Tensor) -> Iterator[Tensor]:
    """The tensor in order, some rows or entries at a time."""
    shape = tensor.whole.full
    if not shape or tensor.bytes <= _ONCE:
        yield read_part(catalogue, tensor.name)
        return
    rows = max(1, _ONCE * shape[0] // tensor.bytes)
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        if tensor.whole.bank:
            part = Shard(shape, entries=tuple(range(start, stop)), bank=True)
        else:
            part = Shard(shape, dim=0, start=start, stop=stop)
        yield read_part(catalogue, tensor.name, part)
