"""What the launches of a custom operator cost, counted from the shapes of its arguments.

A kernel's time on a card is then modelled as the longest of memory_bytes over its memory bandwidth,
cache_bytes over its second-level cache's, flops over its rate, and the least time of a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class KernelCost:
    """One launch of one kernel.

    memory_bytes   that must come from device memory, or go there, at least once
    cache_bytes    that the programs read and write in total, most of them in the second-level cache
    flops          that the products really do, those on masked and padded rows included
    """

    memory_bytes: int
    cache_bytes: int
    flops: int


# operator overload (torch.ops.<namespace>.<name>.default) → the costs of its launches, in order, given the
# operator's arguments (meta tensors will do)
COSTS: dict[object, Callable[..., list[KernelCost]]] = {}

# operator overload → the most bytes that it allocates inside and frees before it returns, given its arguments
WORKSPACES: dict[object, Callable[..., int]] = {}
