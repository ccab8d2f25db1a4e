"""Checkpoints: one file each, written beside its name and renamed when whole."""

import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models import ModelConfig, build_model
from parallel.engine.torch_engine import Engine
from parallel.errors import UserError
from parallel.mesh import Mesh
from parallel.processes import raise_if_any_failed
from parallel.sharding.reshard import moved_state
from trainer.errors import machine_error

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

    On a mesh it is a work of all ranks: each first replica writes its part of the net's state
    (`state["engine"]`) beside the file, which comes last and makes the checkpoint whole. Raises
    UserError, and leaves the older ones alone, when something cannot be written. `check` may refuse,
    by raising, before a file is begun and once more before it gets its name.
    """
    mesh, path = mesh or Mesh(), folder / f"step-{step:08d}.pt"
    if mesh.model > 1:
        if mesh.data_rank == 0:
            _together(lambda: _write(_part(path, mesh.model_rank), state["engine"], check))
        else:
            _together(lambda: None)
        state = state | {"engine": None, "offset": mesh.offset, "tensor": mesh.tensor}
    _together(lambda: _write(path, state, check) if mesh.rank == 0 else None)
    if mesh.rank == 0:
        check()
        for old in checkpoints(folder)[:-keep]:
            for part in [old, *folder.glob(f"{old.stem}.part*")]:
                part.unlink(missing_ok=True)
        for left in folder.glob(".step-*.new"):  # by a process that was killed
            left.unlink(missing_ok=True)
    return path


def _together(work: Callable[[], None]) -> None:
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
    # A process of an older life of the run may be writing the same checkpoint.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    check()
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        check()
        temporary.replace(path)
    except UserError:
        temporary.unlink(missing_ok=True)
        raise
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch reports a full disk as a RuntimeError whose cause may be the system's own error.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise machine_error(cause, path, "write the checkpoint") from None
        raise UserError(f"{path}: cannot write the checkpoint: {error}") from None


def load_into(engine: Engine, path: Path, net: ModelConfig) -> int:
    """Give `engine`, of any mesh, the state that was saved of this net; returns the samples consumed.

    A work of all ranks. Raises UserError for a damaged file, and for one of another net.
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


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
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
        raise UserError(f"{path}: damaged checkpoint ({why}); delete it to go on from an older one") from None
