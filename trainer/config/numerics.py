"""Switches of torch that decide which numbers a run gets; set once per process, and recorded."""

from __future__ import annotations

import os
from typing import Any

import torch


def set_numerics(tf32: bool, deterministic: bool) -> None:
    """Float32 products on CUDA with or without TF32, and only operations that repeat to the bit if
    `deterministic`: one that cannot raises RuntimeError with its name.

    Call it before the first work on CUDA: cuBLAS and NCCL read their variables when they start.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(deterministic)
    # Nothing reads uninitialised memory; filling it takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")  # others add up in an order that may change


def numerics_record() -> dict[str, Any]:
    """What is in force, for the run's record."""
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
    return {
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda_allocator": allocator,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
