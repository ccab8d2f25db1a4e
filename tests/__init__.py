"""Tests, in the folders of the code that they test."""

from parallel.host.threads import set_spin_count

set_spin_count()
