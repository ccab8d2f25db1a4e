"""The loop of products waits for nothing."""

import pytest
import torch

from models import OffsetGrid
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.schedule import whole_schedule

GRIDS = [
    OffsetGrid((3, 4)),
    OffsetGrid((3, 4), class_token=True),
    OffsetGrid((6,), causal=True),
    OffsetGrid((3, 4), share="clip(1)"),  # several runs have one entry
]


@pytest.mark.parametrize("keep", [False, True], ids=["recompute", "keep"])
@pytest.mark.parametrize("workspace", [1, 64 << 20], ids=["blocks", "classes"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nothing_waits_for_the_device_or_depends_on_data(grid, workspace, keep):
    """Meta tensors have no data: .item(), nonzero() and the like raise on them."""
    N, K = grid.num_tokens, grid.num_entries
    x = torch.empty(N, 2, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    banks = [torch.empty(K, 16, 16, device="meta", requires_grad=True) for _ in "qkv"]
    q, k, v = (Operand(0, bank) for bank in range(3))
    (out,) = streamed(Recipe(((q, k),), (v,), 2, 0.3, keep, workspace), whole_schedule(grid), [x], banks)
    out.float().sum().backward()
    assert all(bank.grad is not None and bank.grad.shape == bank.shape for bank in banks)
