"""The folder that `translution prepare` writes: its manifest, lock, and checks."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.errors import machine_error

MANIFEST = "manifest.json"
_TEMPORARY_FILES = (f".{MANIFEST}*.new", ".progress.json*.new", ".shard-*.new")
WRITE_AGAIN = "be written; run the command again to resume"  # completes "PATH: cannot …"


class Record(BaseModel):
    """Part of a file in the folder; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


RecordT = TypeVar("RecordT", bound=Record)


def load_manifest(folder: Path, kind: type[RecordT], command: str, content: str) -> RecordT:
    """The manifest of `content` that `translution prepare COMMAND` wrote as its last file.

    Raises UserError where there is none or it cannot be used.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it with: translution prepare {command}")
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: has no {MANIFEST}, so its preparation is not finished: "
            f"run translution prepare {command}, which resumes if it was interrupted"
        ) from None
    except OSError as error:
        raise machine_error(error, path, "be read") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: not a manifest of {content}: {key} {problem['msg']}".strip()) from None


def write_json(path: Path, values: dict) -> None:
    """Replace a file by `values`, safe against a power cut; raises UserError where it cannot."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, text, durable=True, doing=WRITE_AGAIN)


def check_shard(path: Path, size: int, sha256: str | None = None) -> None:
    """Raise UserError for a shard that is missing or differs from the manifest's bytes and SHA-256."""
    try:
        found = path.stat().st_size
        if found != size:
            what = "truncated" if found < size else "too long"
            raise UserError(
                f"{path}: {what}: has {found:,} bytes, {MANIFEST} says {size:,}; prepare the data again"
            )
        if sha256 and (digest := file_sha256(path)) != sha256:
            raise UserError(
                f"{path}: SHA-256 is {digest[:12]}…, {MANIFEST} says {sha256[:12]}…; prepare the data again"
            )
    except FileNotFoundError:
        raise UserError(f"{path}: this shard of {MANIFEST} is missing; prepare the data again") from None
    except OSError as error:
        raise machine_error(error, path, "be read") from None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writer_lock(out: Path) -> Iterator[None]:
    """Lock the folder against a second command, and delete what a killed one left half written."""
    path = out / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another prepare command is writing here") from None
        except OSError:
            pass  # a file system without locks
        for pattern in _TEMPORARY_FILES:
            for leftover in out.glob(pattern):
                leftover.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_no_other_files(out: Path) -> None:
    """Raise UserError where a folder without progress of an earlier command has other files."""
    other = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
    if other:
        raise UserError(f"--out {out}: is not empty (holds {other[0]}); choose another folder")


def check_same_settings(out: Path, before: Mapping, now: Mapping) -> None:
    """Raise UserError where an earlier command wrote to `out` with other settings."""
    changed = next((key for key in now if before.get(key) != now[key]), None)
    if changed:
        raise UserError(
            f"--out {out}: was started with {changed}={before.get(changed)}, now it is {now[changed]}; "
            "choose another folder, or delete this one"
        )
