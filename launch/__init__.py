"""The command line."""

from parallel.host.threads import set_spin_count

set_spin_count()
