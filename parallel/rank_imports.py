"""Imported once by the server that parallel/spawn.py forks ranks from."""

# pyright: reportUnusedImport=false
import os

import torch

import parallel.sharding.parallelize  # noqa: F401

# Importing DeepSpeed looks for devices, and a process forked after that cannot use CUDA.
if torch.version.cuda is None and torch.version.hip is None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401
