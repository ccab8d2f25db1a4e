"""The code that runs is the code that was submitted: a copy of it in the run directory."""

import shutil
from pathlib import Path

PACKAGES = ("models", "parallel", "trainer", "launch")


def snapshot(run: Path) -> Path:
    """Copy the packages, as they are now, and the configs to RUN/code; returns that directory.

    A copy that is already there stays: it is what the run was begun with.
    """
    root = Path(__file__).resolve().parents[2]
    code = run / "code"
    if code.exists():
        return code
    part = run / ".code.new"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name in (*PACKAGES, "configs"):
        if (root / name).is_dir():
            shutil.copytree(root / name, part / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    from trainer.run_directory.run_directory import code_version

    (part / "version.txt").write_text(code_version() + "\n")
    part.rename(code)
    return code
