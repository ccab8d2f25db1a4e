"""What α-Translution's launches cost by count: no tensor of narrow rows per pair goes through memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.fused.alpha.walk import AlphaWalk
from models.ops.kernel_cost import COSTS, KernelCost

MEMORY, CACHE, RATE, LAUNCH = 3e12, 5.5e12, 800e12, 2e-6  # an H100's bytes, bytes and FLOPs a second


class Counter(TorchDispatchMode):
    """The costs of the custom operators of a pass, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[tuple[str, KernelCost]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "translution":
            self.costs += [(func._opname, cost) for cost in COSTS[func](*args, **(kwargs or {}))]
        return out


def passes(grid: OffsetGrid, batch: int, heads: int, rank: int = 8) -> tuple[Counter, Counter]:
    """The counted forward and backward pass of a layer in bfloat16 on the meta device."""
    with torch.device("meta"):
        mixer = Translution(64 * heads, grid, heads, rank=rank, workspace=1 << 30)
        rows = [
            torch.empty(grid.num_tokens, batch, width * heads, dtype=torch.bfloat16)
            for width in (64, 64, 64, rank, rank, rank)
        ]
    banks = [mixer.get_parameter(f"{name}_bank") for name in "qkv"]
    forward, backward = Counter(), Counter()
    with forward:
        lse, outs, kept = AlphaWalk.forward(mixer.recipe, mixer.schedule, rows, banks)
    grads = [out.bfloat16() for out in outs]
    with backward:
        AlphaWalk.backward(mixer.recipe, mixer.schedule, rows, banks, kept, lse, lse, grads)
    return forward, backward


@pytest.fixture(scope="module")
def base() -> tuple[Counter, Counter]:
    return passes(OffsetGrid((14, 14), class_token=True), 128, 12)


def test_narrow_rows_per_pair_stay_on_the_chip(base: tuple[Counter, Counter]) -> None:
    rows_per_pair = 197**2 * 128 * 12 * 8 * 2  # bytes of one projected operand of all pairs
    forward, backward = (sum(cost.memory_bytes for _, cost in counter.costs) for counter in base)
    assert forward < 1.3 * rows_per_pair
    assert backward < 3.5 * rows_per_pair


def test_products_are_little_more_than_the_useful_ones(base: tuple[Counter, Counter]) -> None:
    """Three forward; backward projects q, k and v, then k and q for token sums, and has six gradients."""
    product = 2 * 197**2 * 128 * 96**2
    relative = ("alpha_form", "alpha_token_sums", "alpha_logit_gradients", "alpha_bank_sums")
    forward, backward = (
        sum(cost.flops for name, cost in counter.costs if name in relative) for counter in base
    )
    assert 3 * product <= forward < 1.15 * 3 * product
    assert 11 * product <= backward < 1.25 * 11 * product


def test_a_layer_takes_few_launches(base: tuple[Counter, Counter]) -> None:
    assert sum(len(counter.costs) for counter in base) < 20
    causal = passes(OffsetGrid((1024,), causal=True), 8, 12)
    assert sum(len(counter.costs) for counter in causal) < 40


def test_counted_time_of_a_layer(base: tuple[Counter, Counter]) -> None:
    """Guards the count that the tiles were chosen by: 0.95 + 2.8 ms on an H100 (counted, not measured)."""
    forward, backward = (
        sum(
            max(cost.memory_bytes / MEMORY, cost.cache_bytes / CACHE, cost.flops / RATE, LAUNCH)
            for _, cost in counter.costs
        )
        for counter in base
    )
    assert forward < 1.1e-3
    assert backward < 3.0e-3
