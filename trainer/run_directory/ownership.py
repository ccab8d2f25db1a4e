"""Only the newest start of a run writes to its run directory; processes of older starts are refused."""

import os
import re
import uuid
from pathlib import Path

from parallel.errors import UserError
from trainer.atomic_write import atomic_write

START_TOKEN = "TRANSLUTION_START_TOKEN"
"""Environment variable in which a launcher gives all ranks of one start of a run the same token. Tokens of
the form "job N, start M" are ordered, others are not."""


class LostOwnership(UserError):
    """A newer start of this run has taken over the run directory."""


class Ownership:
    """The file `start_token` of a run directory: written at every start, read before every write.

    A scheduler that loses sight of a node starts the run elsewhere while the old processes still run.
    A process that finds another token than its own in the file belongs to such an older start.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / "start_token"
        self._token: str | None = None

    def claim(self) -> None:
        """Own the run directory from now on. Every rank may call it; ranks share the environment's token.

        Raises LostOwnership where the launcher numbers its starts and a later one owns it already.
        """
        rank = int(os.environ.get("RANK", "0"))
        self._token = os.environ.get(START_TOKEN) or (uuid.uuid4().hex if rank == 0 else None)
        if self._token:
            if self._path.exists() and _order(self._path.read_text()) > _order(self._token) > []:
                self.check()
            atomic_write(self._path, self._token)

    def check(self) -> None:
        """Raise LostOwnership when a newer start owns the run directory; pass if nothing was claimed."""
        if self._token is None or not self._path.exists():
            return
        newest = self._path.read_text()
        if newest != self._token:
            raise LostOwnership(
                f"{self._run_dir}: a newer start of this run ({newest}) owns it; "
                f"this one ({self._token}) writes nothing more"
            )


def _order(token: str) -> list[int]:
    """Job and start number, by which starts of one run are ordered; empty for an unordered token."""
    match = re.fullmatch(r"job (\d+), start (\d+)", token)
    return [int(number) for number in match.groups()] if match else []
