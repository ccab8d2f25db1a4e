"""Checkpoints: one file each, and one more per model rank on a mesh; visible when complete."""

import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models import ModelConfig, build_model
from parallel.engine.interface import Engine
from parallel.errors import UserError
from parallel.mesh import Mesh
from parallel.processes import raise_if_any_failed
from parallel.sharding.layout import shards
from parallel.sharding.reshard import join, moved_state
from trainer.atomic_write import atomic_write
from trainer.errors import machine_error
from trainer.run_directory.awaited import is_awaited

_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    check: Callable[[], None] = lambda: None,
    mesh: Mesh | None = None,
) -> Path:
    """Write `state` (tensors, numbers, strings) as the checkpoint of `step`; keep the newest few.

    On a mesh all ranks call it: each rank of the first replica writes its part of the net's state
    (`state["engine"]`) to a file of its own; the checkpoint's own file comes last and completes it.
    Raises UserError, and keeps the older ones, when something cannot be written. `check` may raise one
    too; it is called before a file is written and again before it gets its name.
    """
    mesh, path = mesh or Mesh(), folder / f"step-{step:08d}.pt"
    if mesh.model > 1:
        if mesh.data_rank == 0:
            _on_all_ranks(lambda: _write(_part(path, mesh.model_rank), state["engine"], check))
        else:
            _on_all_ranks(lambda: None)
        state = state | {"engine": None, "offset": mesh.offset, "tensor": mesh.tensor}
    _on_all_ranks(lambda: _write(path, state, check) if mesh.rank == 0 else None)
    _on_all_ranks(lambda: check() if mesh.rank == 0 else None)
    if mesh.rank == 0:
        delete_old(folder, keep)
    return path


def delete_old(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the newest few and those that an evaluation waits for, and what processes
    that were killed have left. No save may be under way."""
    whole = checkpoints(folder)
    for old in whole[:-keep]:
        if not is_awaited(folder.parent, checkpoint_step(old)):
            old.unlink(missing_ok=True)
    names = {path.stem for path in checkpoints(folder)}
    for part in folder.glob("step-*.part*"):
        if part.stem not in names:
            part.unlink(missing_ok=True)
    for left in folder.glob(".step-*.new"):
        left.unlink(missing_ok=True)


def set_aside(folder: Path, after: int) -> Path | None:
    """Move the checkpoints of steps beyond `after` into a new folder, so that a run resumes there; returns
    the folder, None if there are none. Raises UserError if no checkpoint is of step `after`."""
    saved = checkpoints(folder)
    steps = [checkpoint_step(path) for path in saved]
    if after not in steps:
        shown = ", ".join(map(str, steps)) or "none"
        raise UserError(f"step {after}: {folder} has no checkpoint of this step; it has {shown}")
    newer = [path for path in saved if checkpoint_step(path) > after]
    if not newer:
        return None
    aside = folder / f".aside-{time.time_ns()}"
    aside.mkdir()
    for path in newer:
        for part in [*folder.glob(f"{path.stem}.part*"), path]:
            part.rename(aside / part.name)
    return aside


def put_back(aside: Path) -> None:
    """Undo `set_aside`."""
    for path in aside.iterdir():
        path.rename(aside.parent / path.name)
    aside.rmdir()


def _on_all_ranks(work: Callable[[], None]) -> None:
    """Do this rank's `work`; raise its UserError on every rank."""
    failure = None
    try:
        work()
    except UserError as error:
        if not dist.is_initialized():
            raise
        failure = error
    raise_if_any_failed(failure)


def _part(path: Path, model_rank: int) -> Path:
    return path.with_name(f"{path.stem}.part{model_rank}")


def _write(path: Path, state: Any, check: Callable[[], None]) -> None:
    doing = "write the checkpoint"

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        check()

    check()
    try:
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, fill, doing=doing)
    except OSError as error:
        raise machine_error(error, path, doing) from None
    except RuntimeError as error:
        # torch reports a full disk as a RuntimeError whose context may be the system's own error.
        if isinstance(error.__context__, OSError):
            raise machine_error(error.__context__, path, doing) from None
        raise UserError(f"{path}: cannot {doing}: {error}") from None


def load_into(engine: Engine, path: Path, net: ModelConfig) -> int:
    """Load a checkpoint of `net`, saved on any mesh, into `engine`; returns the samples consumed.

    All ranks call it. Raises UserError for a damaged file, and for one of another net.
    """
    own, failure, saved, state = engine.mesh, None, {}, {}
    try:
        saved = load_checkpoint(path)
        before = Mesh(1, saved.get("offset", 1), saved.get("tensor", 1))
        if (before.offset, before.tensor) == (own.offset, own.tensor):
            state = load_checkpoint(_part(path, own.model_rank)) if own.model > 1 else saved["engine"]
        else:
            parts = [saved["engine"]]
            if before.model > 1:
                parts = [load_checkpoint(_part(path, m)) for m in range(before.model)]
            with torch.device("meta"):
                whole = build_model(net)
            place = Mesh(1, own.offset, own.tensor, own.model_rank)
            state = moved_state(parts, whole, before, place)
        engine.check_state(state)
    except UserError as error:
        failure = error
    except (KeyError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        failure = UserError(f"{path}: does not fit this config's net: {why}")
    raise_if_any_failed(failure)  # loading may be collective
    engine.load_state(state)
    return int(saved["samples"])


def weight_reader(path: Path, net: ModelConfig) -> Callable[[str], Tensor]:
    """Gives whole weights, and buffers, by name, from a checkpoint of `net` that was saved on any mesh.

    Raises UserError for a damaged file.
    """
    saved = load_checkpoint(path)
    before = Mesh(1, saved.get("offset", 1), saved.get("tensor", 1))
    parts = [saved["engine"]]
    if before.model > 1:
        parts = [load_checkpoint(_part(path, m)) for m in range(before.model)]
    with torch.device("meta"):
        whole = build_model(net)
    held = [shards(whole, Mesh(1, before.offset, before.tensor, m)) for m in range(before.model)]

    def read(name: str) -> Tensor:
        if name in parts[0].get("buffers", {}):
            return parts[0]["buffers"][name]
        return join([part["parameters"][name]["weight"] for part in parts], [rank[name] for rank in held])

    return read


def checkpoint_step(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def is_checkpoint(path: Path) -> bool:
    """Whether the name is that of a checkpoint."""
    return _NAME.fullmatch(path.name) is not None


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given, in host memory; raises UserError for a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).split("\n")[0]
        raise UserError(
            f"{path}: damaged checkpoint ({why}); delete it to resume from an older one"
        ) from None
