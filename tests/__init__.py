"""Tests, in the folders of the code that they test."""

from parallel.threads import set_spin_count

set_spin_count()
