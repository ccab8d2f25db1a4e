"""Ranks that are slower than the others, for which all of them wait."""

from __future__ import annotations

import socket
from statistics import median

from parallel.processes import gather_on_host

SLOW = 1.25  # times the median of the ranks' own time
_IN_A_ROW = 2


class Stragglers:
    """Compares the time that each rank needs for its own work, waiting for others left out."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}

    def compare(self, own_seconds: float) -> list[str]:
        """Collective: a line for each rank that was slow this time and the time before."""
        ranks = gather_on_host((own_seconds, socket.gethostname()))
        usual = median(seconds for seconds, _ in ranks)
        slow = {rank for rank, (seconds, _) in enumerate(ranks) if seconds > SLOW * usual}
        self._before = {rank: self._before.get(rank, 0) + 1 for rank in slow}
        return [
            f"rank {rank} on {ranks[rank][1]} is slow: {ranks[rank][0]:.3f} s of its own work in a step, "
            f"others {usual:.3f} s"
            for rank, times in sorted(self._before.items())
            if times >= _IN_A_ROW
        ]
