"""How OpenMP's threads wait for each other. Imports only os: it must run before torch is imported."""

import os

# A thread that reaches the end of a parallel region first spins this often before it sleeps. libgomp's
# default, 300,000, is milliseconds: harmless on a quiet machine, but where another program holds the
# other thread's core, every region wastes that much, and a run took ten times as long. Far fewer than
# 1,000 put threads to sleep in regular use. `translution bench busy` measures both.
SPIN_COUNT = 1_000
LIBGOMP_SPIN_COUNT = 300_000


def set_spin_count() -> None:
    """Let OpenMP's threads spin SPIN_COUNT times, unless the user has chosen how they wait.

    libgomp reads the variable when torch is imported; child processes inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
