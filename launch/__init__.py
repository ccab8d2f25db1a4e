"""The command line."""

from parallel.threads import set_spin_count

set_spin_count()
