"""`python -m launch.ssh.host_report DIRECTORY TOKEN PEER`: what one host says of itself, as a line of JSON.

Standard library and package metadata only, so that it answers at once on every host.
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

PACKAGES = ("torch", "deepspeed", "fairscale", "numpy")


def probe(directory: Path, token: str, peer: str) -> dict[str, Any]:
    """Versions, clock, memory and disk of this host, whether it sees and may write what `token` names.

    `directory` holds a file called `token` written by the asker; `peer` is an address the host is to
    reach the others by.
    """
    seen = (directory / token).exists()
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), "code": code_digest()}
        | {name: _version(name) for name in PACKAGES},
        "time": time.time(),
        "memory": _free_memory(),
        "disk": shutil.disk_usage(directory).free if directory.is_dir() else None,
        "shared": seen,
        "writable": seen and _writes(directory),
        "interface": _interface(peer),
    }


def code_digest() -> str:
    """The first letters of a hash over this project's Python files."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in ("launch", "models", "parallel", "trainer"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _writes(directory: Path) -> bool:
    probe = directory / f".probe-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.write_text("x")
        probe.unlink()
    except OSError:
        return False
    return True


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _interface(peer: str) -> str | None:
    """The network interface over which this host reaches `peer`; None for itself or when not known."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))
            own = probe.getsockname()[0]
        import fcntl
        import struct

        for _, name in socket.if_nameindex():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as each:
                try:
                    packed = fcntl.ioctl(each, 0x8915, struct.pack("256s", name[:15].encode()))  # SIOCGIFADDR
                except OSError:
                    continue
            if socket.inet_ntoa(packed[20:24]) == own and name != "lo":
                return name
    except OSError:
        pass
    return None


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
