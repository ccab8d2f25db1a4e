"""From exceptions to what a user sees: one line and an exit code, or a traceback."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from parallel.errors import RankFailure, UserError

# Errors of the machine, not of the program.
_MACHINE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than this system allows",
}

RESUME_COMMAND = "TRANSLUTION_RESUME_COMMAND"
"""Environment variable in which a launcher says which command resumes a run, before the run's directory;
empty where it resumes the run itself, or says later how."""


class Interrupted(Exception):
    """A signal stopped the run; it has saved a checkpoint."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.number = number
        self.step = step


def resume_hint(run: Path) -> str:
    """What follows the news that a run has stopped: the command that resumes it, by its launcher."""
    command = os.environ.get(RESUME_COMMAND, "translution train --resume")
    return f"; resume with: {command} {run}" if command else ""


def machine_error(error: OSError, path: Path | str, doing: str) -> UserError:
    """The UserError for an operating system's error while `doing` something to `path`."""
    why = _MACHINE.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{path}: cannot {doing}: {why}")


def exit_code(action: Callable[[], None], debug: bool = False) -> int:
    """Run `action`; returns 0, or 2 for a user's mistake and 1 for a rank failure, after one line on stderr.

    With `debug` also the traceback. A signal gives 128 + its number.
    """
    try:
        action()
    except UserError as error:
        if debug:
            traceback.print_exc()
        # Mostly all ranks make the same mistake: the first one of each host prints it.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        if debug:
            traceback.print_exc()
        line = machine_error(error, error.filename or "output", "write")
        print(f"error: {line}", file=sys.stderr)
        return 2
    except RankFailure as failure:
        if debug:
            traceback.print_exc()
        if failure.reports:
            print(f"error: {failure}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        return 128 + stop.number
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
