"""The checkpoints of a run: a folder `checkpoints/step-N` each; how they are named, kept, and set aside."""

import re
import shutil
import time
from pathlib import Path

from parallel.checkpoint.contents import is_whole
from parallel.errors import UserError
from trainer.run_directory.awaited import is_awaited

_NAME = re.compile(r"step-(\d{8,})")
_DAMAGED = ".damaged-"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return folder / f"step-{step:08d}"


def checkpoint_step(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def is_checkpoint(path: Path) -> bool:
    """Whether it has the name and the index of a checkpoint."""
    return _NAME.fullmatch(path.name) is not None and is_whole(path)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder whose saves were finished, oldest first.

    Raises UserError for a folder of an older version's checkpoints alone.
    """
    if not folder.is_dir():
        return []
    found = sorted((path for path in folder.iterdir() if is_checkpoint(path)), key=checkpoint_step)
    if not found and (old := sorted(folder.glob("step-*.pt"))):
        raise UserError(
            f"{old[-1]}: an older version's checkpoint; convert it once with "
            f"translution convert-checkpoint {folder.parent}"
        )
    return found


def delete_old(folder: Path, keep: int, keep_every: int | None = None) -> None:
    """Delete all checkpoints but the newest few, those of every `keep_every`-th step, and those that an
    evaluation waits for; and what processes that were killed have left. No save may be under way."""
    whole = checkpoints(folder)
    for old in whole[:-keep]:
        step = checkpoint_step(old)
        if not is_awaited(folder.parent, step) and (keep_every is None or step % keep_every):
            unfinished = old.with_name(f".{old.name}.deleted.new")
            old.rename(unfinished)  # so that nobody sees a part of it
            shutil.rmtree(unfinished, ignore_errors=True)
    for left in folder.glob(".step-*.new"):
        shutil.rmtree(left, ignore_errors=True)
    for damaged in folder.glob(f"{_DAMAGED}step-*"):
        step = checkpoint_step(damaged.with_name(damaged.name.removeprefix(_DAMAGED)))
        if whole and step <= checkpoint_step(whole[-1]):
            shutil.rmtree(damaged, ignore_errors=True)


def hide_damaged(path: Path) -> None:
    """Rename a damaged checkpoint, so that it counts as none; it is deleted once the run is past its step."""
    hidden = path.with_name(f"{_DAMAGED}{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)


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
        path.rename(aside / path.name)
    return aside


def put_back(aside: Path) -> None:
    """Undo `set_aside`."""
    for path in aside.iterdir():
        path.rename(aside.parent / path.name)
    aside.rmdir()
