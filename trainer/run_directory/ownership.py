"""One life of a run writes at a time: a process that outlived its run's restart is kept out."""

import os
import re
import uuid
from pathlib import Path

from parallel.errors import UserError

LIFE = "TRANSLUTION_LIFE"
"""Environment variable by which a launcher gives all ranks of one start of a run the same token. Tokens
"job N, start M" are in order, others are not."""


class Superseded(UserError):
    """A newer start of the same run has taken the run directory over."""


class Fence:
    """The token file `life` of a run directory: written at every start, read before every write.

    A scheduler that loses sight of a node starts the run elsewhere while the old processes go on.
    Whoever finds another token than its own in the file is of such an older life.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / "life"
        self._life: str | None = None

    def claim(self) -> None:
        """Begin a life. Every rank may call it; several ranks share the token of the environment.

        Raises Superseded where the launcher numbers its starts and a later one has begun.
        """
        rank = int(os.environ.get("RANK", "0"))
        self._life = os.environ.get(LIFE) or (uuid.uuid4().hex if rank == 0 else None)
        if self._life:
            if self._path.exists() and _numbers(self._path.read_text()) > _numbers(self._life) > []:
                self.check()
            temporary = self._path.with_name(f".life.{rank}.new")
            temporary.write_text(self._life)
            temporary.replace(self._path)

    def check(self) -> None:
        """Raise Superseded when a newer life has begun; passes where none was claimed."""
        if self._life is None or not self._path.exists():
            return
        newest = self._path.read_text()
        if newest != self._life:
            raise Superseded(
                f"{self._run_dir}: taken over by a newer start of this run ({newest}); "
                f"this one ({self._life}) writes nothing more"
            )


def _numbers(life: str) -> list[int]:
    """By which starts of one run are in order; none where the token has no order."""
    match = re.fullmatch(r"job (\d+), start (\d+)", life)
    return [int(number) for number in match.groups()] if match else []
