"""The folder that holds the packages, and their version; imports nothing heavy."""

import subprocess
from importlib import metadata
from pathlib import Path

CODE_FOLDER = Path(__file__).resolve().parent.parent  # holds models/, parallel/, trainer/ and launch/


def code_version() -> str:
    """The commit of a checkout (marked when files differ from it), else the package's version.

    The copy of the code that a submitted run uses has its version in a file.
    """
    if (CODE_FOLDER / "version.txt").exists():
        return (CODE_FOLDER / "version.txt").read_text().strip()
    if (CODE_FOLDER / ".git").exists():
        command = ["git", "-C", str(CODE_FOLDER), "describe", "--always", "--dirty", "--tags"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return metadata.version("translution")
