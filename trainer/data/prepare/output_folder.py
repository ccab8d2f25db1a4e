"""A folder that `translution prepare` fills: its manifest, and the settings it was begun with."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from parallel.errors import UserError
from trainer.errors import machine_error

MANIFEST = "manifest.json"


class Record(BaseModel):
    """Part of a file in the folder: a key that nobody knows is an error."""

    model_config = ConfigDict(extra="forbid")


RecordT = TypeVar("RecordT", bound=Record)


def load_manifest(folder: Path, kind: type[RecordT], command: str, content: str) -> RecordT:
    """The manifest that `translution prepare COMMAND` wrote into `folder` last, so that it marks a whole
    set of `content`; raises UserError where there is none or it cannot be used."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it with: translution prepare {command}")
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: holds no {MANIFEST}; it is not prepared, or not to the end: "
            f"run translution prepare {command} (again), which goes on where it stopped"
        ) from None
    except OSError as error:
        raise machine_error(error, path, "be read") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: not a manifest of {content}: {key} {problem['msg']}".strip()) from None


def write_json(path: Path, values: dict) -> None:
    """Replace a file by `values` so that not even a power cut leaves a part of it."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep a second command out; a killed one's lock is gone with it."""
    path = out / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another prepare command is writing here") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_same_settings(out: Path, before: Mapping, now: Mapping) -> None:
    """Raise UserError where `out` was begun with other settings."""
    changed = next((key for key in now if before.get(key) != now[key]), None)
    if changed:
        raise UserError(
            f"--out {out}: was begun with {changed}={before.get(changed)}, now it is {now[changed]}; "
            "name another folder, or delete this one"
        )
