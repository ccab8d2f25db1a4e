"""Saving what a rank holds, at once or in the background, where a copy is written while training goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from parallel.checkpoint.contents import BUFFER, Index
from parallel.checkpoint.pieces import pieces, share_of_run
from parallel.checkpoint.planners import Item, ShardSavePlanner
from parallel.checkpoint.storage import RankFilesWriter
from parallel.engine.interface import HeldState
from parallel.mesh import Mesh
from parallel.processes import checkpoint_group
from parallel.sharding.layout import Shard

# What DCP says of a single process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

State = dict[str, Tensor]
"""Flat tensors by `KIND/NAME`."""


class Saver:
    """Saves checkpoints of one net, never two at once; every rank makes the same calls.

    held        the part of each parameter that this mesh place holds
    background  copy the state to host memory, in buffers that are kept, and write the copy in a thread
    ended       when the last save ended, by time.perf_counter
    """

    def __init__(self, held: Mapping[str, Shard], mesh: Mesh, background: bool) -> None:
        self._held, self._mesh = held, mesh
        self._stager = _Stager() if background else None
        self._writing: Future[object] | None = None
        self.ended = 0.0

    def start(self, path: Path, state: HeldState, index: Index, check: Callable[[], None]) -> None:
        """Begin to write the checkpoint `path`; on return the state may change.

        `check` may raise, before anything is written and before the checkpoint gets its name. No save may be
        under way; errors are raised by `finish`.
        """
        assert self._writing is None
        tensors, items = written_by(state, self._held, self._mesh)
        planner, writer = ShardSavePlanner(items), RankFilesWriter(path, index, check)
        alone = not dist.is_initialized()
        if self._stager:
            started = async_save(
                tensors,
                storage_writer=writer,
                planner=planner,
                process_group=checkpoint_group(),
                async_stager=self._stager,
                no_dist=alone,
            )
            assert isinstance(started, Future)
            self._writing = started
            started.add_done_callback(self._end)
            return
        self._writing = Future()
        self._writing.add_done_callback(self._end)
        try:
            save(
                tensors,
                storage_writer=writer,
                planner=planner,
                process_group=checkpoint_group(),
                no_dist=alone,
            )
            self._writing.set_result(None)
        except CheckpointException as error:
            self._writing.set_exception(error)

    def _end(self, _: object) -> None:
        self.ended = time.perf_counter()

    @property
    def writing(self) -> bool:
        """Whether a save was started that `finish` has not been called for."""
        return self._writing is not None

    @property
    def done(self) -> bool:
        """Whether `finish` would return at once on this rank."""
        return self._writing is not None and self._writing.done()

    @property
    def failed(self) -> bool:
        """Whether the save has failed: it has on all ranks, but they may learn of it at different times."""
        return self.done and self._writing is not None and self._writing.exception() is not None

    def finish(self) -> None:
        """Wait until the save that was started has ended; raises on every rank what went wrong on any."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except CheckpointException as error:
            raise first_failure(error) from None


def first_failure(error: CheckpointException) -> BaseException:
    """What went wrong on the first rank that failed."""
    return error.failures[min(error.failures)][0]


def written_by(state: HeldState, held: Mapping[str, Shard], mesh: Mesh) -> tuple[State, list[Item]]:
    """What this rank writes of its state, each element of the net being written by one rank."""
    tensors, items = {}, []
    for kind, name, own, run in _owned(state, held, mesh):
        tensors[f"{kind}/{name}"] = own
        items += [Item(kind, piece) for piece in pieces(name, held[name], run, by_head=True)]
    for name, buffer in state.buffers.items() if mesh.rank == 0 else ():
        tensors[f"{BUFFER}/{name}"] = buffer.reshape(-1)
        whole = Shard(tuple(buffer.shape))
        items += [Item(BUFFER, piece) for piece in pieces(name, whole, (0, whole.numel))]
    return tensors, items


def _owned(
    state: HeldState, held: Mapping[str, Shard], mesh: Mesh
) -> Iterator[tuple[str, str, Tensor, tuple[int, int]]]:
    for kind, tensors in state.tensors.items():
        for name, tensor in tensors.items():
            if not held[name].counted(mesh):
                continue
            start, stop = state.runs[name]
            if state.replicated:
                start, stop = share_of_run(held[name], mesh.data_rank, mesh.data)
                tensor = tensor[start:stop]
            yield kind, name, tensor, (start, stop)


class _Stager(AsyncStager):
    """Copies a state to host memory, pinned on CUDA, that is allocated once."""

    def __init__(self) -> None:
        self._buffers: State = {}

    @property
    def should_synchronize_after_execute(self) -> bool:
        return False

    def stage(self, state_dict: STATE_DICT_TYPE) -> STATE_DICT_TYPE:
        for key, tensor in state_dict.items():
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != tensor.shape:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[key] = buffer
            buffer.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in state_dict.values()):
            torch.cuda.current_stream().synchronize()
        return self._buffers

    def synchronize_staging(self) -> None: ...

    def close(self) -> None:
        self._buffers.clear()
