"""Model FLOPs utilisation: the share of the device's matrix rate that the net's own FLOPs make up."""

from __future__ import annotations

import time

import torch

from models.ops.cards import card_of

_SIDE = 512


def peak_rate(device: torch.device) -> float:
    """FLOP/s: of dense bfloat16 products by the card's data sheet, or measured here on the CPU in float32."""
    if device.type == "cuda":
        return card_of(device).peak
    one, best = torch.ones(_SIDE, _SIDE), 0.0
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        torch.mm(one, one)
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - start))
    return best
