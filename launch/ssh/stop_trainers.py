"""`python -m launch.ssh.stop_trainers TOKEN SIGNAL`: ask one start's training processes on this host to stop.

Standard library only. They are found by the token in their environment; each saves and stops.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from trainer.run_directory.ownership import START_TOKEN


def stop_trainers(token: str, number: int) -> int:
    """Send a signal to each process `python -m trainer` of this start; returns how many there are.

    SIGHUP, for which a trainer does not save, becomes SIGTERM.
    """
    sent = signal.SIGTERM if number == signal.SIGHUP else number
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
            # The launcher and the shell above it have the token too.
            trains = [b"-m", b"trainer"] in (arguments[1:3], arguments[2:4])  # python -u -m trainer
            if trains and f"{START_TOKEN}={token}".encode() in environment:
                os.kill(int(process.name), sent)
                count += 1
    return count


if __name__ == "__main__":
    print(stop_trainers(sys.argv[1], int(sys.argv[2])))
