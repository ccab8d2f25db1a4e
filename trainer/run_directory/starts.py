"""The starts of a run: where and when each began, so that one can tell whether it is still alive."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

STARTS = "starts.jsonl"


class Start(NamedTuple):
    """One start. `born` tells its process from a later one with the same id, where the system says when a
    process began; `parameters` are the whole net's."""

    time: float
    host: str
    pid: int
    born: str
    processes: int
    parameters: int

    @property
    def alive(self) -> bool | None:
        """Whether its first process still runs; None on another machine."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's
        return not self.born or _born(self.pid) == self.born


def this_start(processes: int, parameters: int) -> dict[str, Any]:
    """The record of this process's start."""
    pid = os.getpid()
    return Start(time.time(), socket.gethostname(), pid, _born(pid), processes, parameters)._asdict()


def read_starts(run: Path) -> list[Start]:
    """Oldest first; a damaged line ends them."""
    path, starts = run / STARTS, []
    if not path.is_file():
        return starts
    for line in path.read_text().splitlines():
        try:
            starts.append(Start(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            break
    return starts


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
