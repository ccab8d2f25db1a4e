"""`python -m launch.ssh.host_report DIRECTORY TOKEN PEER`: describe this host in a line of JSON.

Uses the standard library and package metadata only, so that every host answers quickly.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.rendezvous import interface_to
from parallel.code_folder import CODE_FOLDER

PACKAGES = ("torch", "deepspeed", "fairscale", "numpy")


def describe_host(directory: Path, token: str, peer: str) -> dict[str, Any]:
    """Versions, clock, free memory and disk of this host, and whether it shares `directory`.

    token   name of a file in `directory` that the asking host has created
    peer    address of another host, to find the network interface that leads to it
    """
    shared = (directory / token).exists()
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), "code": code_digest()}
        | {name: _version(name) for name in PACKAGES},
        "time": time.time(),
        "memory": _free_memory(),
        "disk": shutil.disk_usage(directory).free if directory.is_dir() else None,
        "shared": shared,
        "writable": shared and _is_writable(directory),
        "interface": interface_to(peer),
    }


def code_digest() -> str:
    """The first ten digits of a hash of this project's Python files."""
    digest = hashlib.sha256()
    for package in ("launch", "models", "parallel", "trainer"):
        for path in sorted((CODE_FOLDER / package).rglob("*.py")):
            digest.update(str(path.relative_to(CODE_FOLDER)).encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _is_writable(directory: Path) -> bool:
    test_file = directory / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        test_file.write_text("x")
        test_file.unlink()
    except OSError:
        return False
    return True


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    print(json.dumps(describe_host(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
