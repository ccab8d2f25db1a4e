"""How the share of kept tokens falls during training (EViT)."""

from __future__ import annotations

import math


def keep_at(step: int, start: int, end: int, keep: float) -> float:
    """The share that is kept at a step: 1 before `start`, then along a half cosine down to `keep` at `end`.

    Source: the public code of arXiv 2202.07800.
    """
    if step < start:
        return 1.0
    if step >= end:
        return keep
    return keep + (1 - keep) * (1 + math.cos(math.pi * (step - start) / (end - start))) / 2
