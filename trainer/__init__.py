"""Config, data, training, evaluation, checkpoints and the run directory."""

import os

from parallel.host.threads import set_spin_count

# Allocate large tensors on huge pages: every step allocates the banks' gradients, and page faults took a
# fifth of the time of their matrix products. Torch reads this at its first large allocation, so it is set
# here, which every command and `python -m trainer` import first.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
set_spin_count()
