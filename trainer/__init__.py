"""Config, data, the training loop, evaluation, checkpoints and the run directory."""

import os

from parallel.threads import set_spin_count

# Large tensors on huge pages: the banks' gradients are allocated anew in every step, and page faults
# took a fifth of their product's time. Torch reads this at its first large allocation; every command
# and `python -m trainer` pass here before that.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
set_spin_count()
