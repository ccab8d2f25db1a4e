"""Copies the code into the run directory, so that a job runs the code that was submitted."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from parallel.code_folder import CODE_FOLDER
from trainer.errors import machine_error

PACKAGES = ("models", "parallel", "trainer", "launch")
_DIGEST = ".digest"


def snapshot(run: Path) -> Path:
    """Copy the packages and the configs to RUN/code and return that folder; an existing copy is kept.

    Where a run beside it has the same code, the copy is made of hard links to that run's files: it takes no
    room, and stays whole when the other run is deleted. Bytecode is copied too: compiling takes each new
    process a second. Raises UserError, and leaves nothing, where it cannot be written.
    """
    code = run / "code"
    if code.exists():
        return code
    part = run / ".code.new"
    shutil.rmtree(part, ignore_errors=True)
    digest = _digest()
    try:
        if not _link(digest, run, part):
            _copy(part)
            (part / _DIGEST).write_text(digest)
        part.rename(code)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise machine_error(_first(error), code, "be written") from None
    return code


def _first(error: OSError) -> OSError:
    """Of the many errors of copytree, which it keeps as text only, the first."""
    found = re.search(r"\[Errno (\d+)\] ([^:\"]*)", str(error)) if isinstance(error, shutil.Error) else None
    return OSError(int(found[1]), found[2]) if found else error


def _digest() -> str:
    """A digest of all that is copied, and of the version, which names the commit."""
    from trainer.run_directory.run_directory import code_version

    digest = hashlib.sha256(code_version().encode())
    for name in (*PACKAGES, "configs"):
        for path in sorted((CODE_FOLDER / name).rglob("*")):
            if path.suffix in (".pyc", ".new") or not path.is_file():
                continue
            # Bytecode is valid for the time of its source, so the time is part of the version.
            digest.update(f"{path.relative_to(CODE_FOLDER)} {int(path.stat().st_mtime)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _copy(part: Path) -> None:
    from trainer.run_directory.run_directory import code_version

    part.mkdir()
    for name in (*PACKAGES, "configs"):
        if (CODE_FOLDER / name).is_dir():
            shutil.copytree(CODE_FOLDER / name, part / name, ignore=shutil.ignore_patterns(".*"))
    (part / "version.txt").write_text(code_version() + "\n")


def _link(digest: str, run: Path, part: Path) -> bool:
    """Make `part` of hard links to the same code of a run beside `run`; False if there is none, or where the
    file system has no such links."""
    for path in run.parent.glob(f"*/code/{_DIGEST}"):
        try:
            if path.read_text() == digest:
                shutil.copytree(path.parent, part, copy_function=os.link)
                return True
        except (OSError, shutil.Error):  # deleted meanwhile, or no hard links here
            shutil.rmtree(part, ignore_errors=True)
    return False
