"""Config, data, training, evaluation, checkpoints and the run directory."""

import os

from parallel.host.threads import set_spin_count

# Allocate large tensors on huge pages: every step allocates the banks' gradients, and page faults took a
# fifth of the time of their matrix products. Torch reads this at its first large allocation, so it is set
# here, which every command and `python -m trainer` import first.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
set_spin_count()

# Segments of CUDA memory that grow in place: banks and activations of many sizes would break up fixed ones.
# Read when torch is imported; left alone where the user has configured the allocator.
if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
