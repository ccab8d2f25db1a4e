"""Copies the code into the run directory, so that a job runs the code that was submitted."""

import shutil
from pathlib import Path

from parallel.code_folder import CODE_FOLDER

PACKAGES = ("models", "parallel", "trainer", "launch")


def snapshot(run: Path) -> Path:
    """Copy the packages and the configs to RUN/code and return that folder; an existing copy is kept.

    Bytecode is copied too: compiling takes each new process a second.
    """
    code = run / "code"
    if code.exists():
        return code
    part = run / ".code.new"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name in (*PACKAGES, "configs"):
        if (CODE_FOLDER / name).is_dir():
            shutil.copytree(CODE_FOLDER / name, part / name, ignore=shutil.ignore_patterns(".*"))
    from trainer.run_directory.run_directory import code_version

    (part / "version.txt").write_text(code_version() + "\n")
    part.rename(code)
    return code
