"""Checkpoints: one file each, written beside its name and renamed when whole."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from parallel.errors import UserError
from trainer.errors import machine_error

_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], keep: int, check: Callable[[], None] = lambda: None
) -> Path:
    """Write `state` (tensors, numbers, strings) as the checkpoint of `step`; keep the newest few.

    Raises UserError, and leaves the older ones alone, when it cannot be written. `check` may refuse,
    by raising, before the file is begun and once more before it gets its name.
    """
    path = folder / f"step-{step:08d}.pt"
    temporary = folder / f".{path.name}.new"
    check()
    try:
        folder.mkdir(exist_ok=True)
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
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What `save_checkpoint` was given; raises UserError for a damaged file."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged checkpoint ({why}); delete it to go on from an older one") from None
