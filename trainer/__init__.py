"""Config, data, the training loop, evaluation, checkpoints and the run directory."""

import os

# Before torch is loaded: threads that wait by spinning take the cores from the threads they wait for
# as soon as anything else runs on the machine; a step on two shared cores was 2 to 4 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
