"""torch.distributed.checkpoint's storage: of each rank a safetensors file a kind, and a manifest; an index.

A folder of files becomes the checkpoint by a rename, when all ranks have written and the index is there.
"""

from __future__ import annotations

import json
import shutil
import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from parallel.checkpoint.blocks import BLOCK, BlockReader, BlockWriter
from parallel.checkpoint.catalogue import Catalogue, Place
from parallel.checkpoint.contents import (
    DTYPES,
    TORCH_DTYPES,
    Boxes,
    DataFile,
    Index,
    Manifest,
    ManifestFile,
    flush_folder,
    write_index,
    write_manifest,
)
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.planners import Item, ShardSavePlanner
from parallel.traffic_counter import leave_out_thread

_COPY = 1 << 26  # bytes that are copied to the host at once


class RankFilesWriter(StorageWriter):
    """Writes the checkpoint `path`; `index` is complete but for its manifests.

    `check` may raise; it is called on every rank before anything is written, and once before the checkpoint
    gets its name. One that has the name already, such as a damaged one, is replaced.
    """

    def __init__(self, path: Path, index: Index, check: Callable[[], None]) -> None:
        self.path, self._index, self._check = path, index, check
        self._rank = 0

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._rank = kwargs["rank"]
        leave_out_thread()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._check()
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        folder = unfinished(self.path)
        folder.mkdir(parents=True)
        return [replace(plan, storage_data=str(folder)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        assert isinstance(planner, ShardSavePlanner)
        self._folder = Path(plan.storage_data)
        given = [(planner.item(item), partial(planner.resolve_data, item)) for item in plan.items]
        manifest = write_rank(self._folder, self._rank, given)
        written: Future[list[WriteResult]] = Future()
        written.set_result([WriteResult(MetadataIndex(manifest.name), manifest.bytes, manifest)])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        manifests = tuple(result.storage_data for ranks in results for result in ranks)
        publish(self._folder, self.path, self._index.model_copy(update={"manifests": manifests}), self._check)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def unfinished(path: Path) -> Path:
    """A new name for the folder in which the checkpoint `path` is written."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")


def publish(folder: Path, path: Path, index: Index, check: Callable[[], None] = lambda: None) -> None:
    """Write the index into a folder of all ranks' files, and give it the checkpoint's name."""
    write_index(folder, index)
    check()
    if path.exists():
        old = unfinished(path)
        path.rename(old)
        folder.rename(path)
        shutil.rmtree(old)
    else:
        folder.rename(path)
    flush_folder(path.parent)


def write_rank(folder: Path, rank: int, items: Sequence[tuple[Item, Callable[[], Tensor]]]) -> ManifestFile:
    """Write a rank's items, each with its boxes [boxes, *sizes], and its manifest. Raises OSError."""
    files, boxes = {}, []
    for kind in dict.fromkeys(item.kind for item, _ in items):
        name = f"rank-{rank:04d}.{kind}.safetensors"
        own = [(item.piece, values()) for item, values in items if item.kind == kind]
        # Boxes of whole blocks come first and so begin with one: whoever reads one reads nothing beside it.
        own.sort(key=lambda each: each[0].numel * each[1].element_size() % BLOCK > 0)
        with BlockWriter(folder / name) as file:
            file.write(_header(own))
            for _, group in groupby(own, lambda each: _memory(each[0])):
                boxes += _write_group(file, name, kind, list(group))
            files[name] = DataFile(bytes=file.size, crc32=file.close())
    return write_manifest(folder, rank, Manifest(files=files, boxes=tuple(boxes)))


_Given = Sequence[tuple[Piece, Tensor]]


def _memory(piece: Piece) -> tuple[Any, ...]:
    """The same for pieces that are slices of the same entries: these are written entry by entry."""
    return piece.name, piece.entries, piece.start, piece.held


def _write_group(file: BlockWriter, name: str, kind: str, group: _Given) -> list[Boxes]:
    sizes = [piece.numel * tensor.element_size() for piece, tensor in group]
    found, at = [], file.size
    for (piece, tensor), size in zip(group, sizes, strict=True):
        found.append(
            Boxes(
                kind=kind,
                name=piece.name,
                entries=piece.entries,
                whole=piece.whole,
                offsets=piece.offsets,
                sizes=piece.sizes,
                dtype=DTYPES[tensor.dtype],  # pyright: ignore[reportArgumentType]
                file=name,
                at=at,
                stride=sum(sizes),
            )
        )
        at += size
    count = max(1, _COPY // max(1, sum(sizes)))
    for some in zip(*(tensor.split(count) for _, tensor in group), strict=True):
        on_host = [each.cpu() for each in some]
        for boxes in zip(*on_host, strict=True):
            for box in boxes:
                file.write(memory_of(box.contiguous()))
    return found


def _header(own: _Given) -> bytes:
    """The start of a safetensors file; a box is named by key and offsets, `layers.0.mixer.q_bank[17]@0,8`."""
    header, at = {}, 0
    for _, group in groupby(own, lambda each: _memory(each[0])):
        pieces = [(piece, tensor, piece.keys()) for piece, tensor in group]
        for box in range(pieces[0][0].boxes):
            for piece, tensor, keys in pieces:
                size = piece.numel * tensor.element_size()
                header[f"{keys[box]}@{','.join(map(str, piece.offsets))}"] = {
                    "dtype": DTYPES[tensor.dtype],
                    "shape": piece.sizes,
                    "data_offsets": (at, at + size),
                }
                at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % BLOCK)  # so that the data begin with a block
    return struct.pack("<Q", len(text)) + text


def memory_of(tensor: Tensor) -> memoryview:
    """A contiguous host tensor's bytes."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


class RankFilesReader(StorageReader):
    """Reads from a checkpoint what a planner asks for.

    `bytes_read` counts what was read of tensors. Raises Damaged.
    """

    def __init__(self, catalogue: Catalogue, keys: set[str]) -> None:
        self._catalogue, self._keys = catalogue, keys
        self.bytes_read = 0

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def read_metadata(self) -> Metadata:
        found, self._places = self._catalogue.find(self._keys)
        return Metadata({**found}, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        placed = [(self._places[item.storage_index], item) for item in plan.items]
        placed.sort(key=lambda each: (each[0].file, each[0].at))
        reader, name = None, ""
        try:
            for place, item in placed:
                if reader is None or name != place.file:
                    reader = self._close(reader)
                    reader, name = self._catalogue.open(place.file), place.file
                _read(reader, place, item.storage_offsets, item.lengths, planner.resolve_tensor(item))
        finally:
            self._close(reader)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _close(self, reader: BlockReader | None) -> None:
        if reader is not None:
            self.bytes_read += reader.bytes_read
            reader.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _read(reader: BlockReader, place: Place, offsets: Sequence[int], sizes: Sequence[int], target: Tensor):
    """Read a part of a saved box into `target` [*sizes]."""
    dtype, rows = TORCH_DTYPES[place.dtype], None
    inner = tuple(place.sizes)
    if place.sizes:  # whole rows are read
        inner, rows = (sizes[0], *place.sizes[1:]), offsets[0]
    exact = tuple(inner) == tuple(sizes) and target.dtype == dtype
    direct = exact and target.device.type == "cpu" and target.is_contiguous()
    read = target if direct else torch.empty(inner, dtype=dtype)
    row = dtype.itemsize * (torch.Size(place.sizes[1:]).numel() if place.sizes else 1)
    reader.read_into(place.at + row * (rows or 0), memory_of(read))
    if direct:
        return
    for dim, (start, size) in list(enumerate(zip(offsets, sizes, strict=True)))[1:]:
        read = read.narrow(dim, start, size)
    target.copy_(read)
