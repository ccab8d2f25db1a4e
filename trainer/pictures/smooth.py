"""Smooth curves."""

from __future__ import annotations


def smooth(values: list[float]) -> list[float]:
    """The mean of each value with those around it, a twentieth of all on either side."""
    reach = len(values) // 20
    return [
        sum(near) / len(near)
        for near in (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    ]
