"""Measures the peak of allocated memory."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(action: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that `action` has allocated, beyond what was allocated before.

    Exact: on CUDA the allocator's maximum; on the CPU the running sum of all allocations and releases,
    also inside operators, which makes the action a few times slower. Untouched pages count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "10")  # otherwise it prints to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    results = recorded.profiler.kineto_results if recorded.profiler else None
    assert results is not None
    events: list[Any] = results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):  # the sort is stable
        live += change
        peak = max(peak, live)
    return peak
