"""Products of runs of rows equal plain ones, row-major or channel-major, and wait for nothing."""

import pytest
import torch

from models import OffsetGrid
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.chunks import Runs, Span
from models.ops.walk.products import Bank
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
    schedule = whole_schedule(grid, in_bands=False)
    (out,) = streamed(Recipe(((q, k),), (v,), 2, 0.3, keep, workspace), schedule, [x], banks)
    out.float().sum().backward()
    assert all(bank.grad is not None and bank.grad.shape == bank.shape for bank in banks)


SPANS = [Span(2, 0, 3, 1), Span(0, 3, 5, 0), Span(2, 5, 6, 4)]  # rows overlap, and entry 2 comes twice
BATCH, WIDTH, OUT, TOKENS = 2, 5, 3, 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_products_of_runs_equal_plain_ones(layout, dtype):
    torch.manual_seed(0)
    weights = torch.randn(4, WIDTH, OUT, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    rows, grad = torch.randn(TOKENS * BATCH, WIDTH).to(dtype), torch.randn(6 * BATCH, OUT).to(dtype)
    out, back = (
        torch.empty(6 * BATCH, OUT, dtype=dtype),
        torch.ones(TOKENS * BATCH, WIDTH, dtype=weights.dtype),
    )
    bank = Bank(weights)
    if layout == "rows":
        bank.multiply(rows, Runs(SPANS), BATCH, out)
        bank.multiply_back(grad, Runs(SPANS), BATCH, back)
        bank.add_gradient(rows, grad, Runs(SPANS), BATCH)
    else:
        runs = [(span.entry, span.row, span.start, span.stop - span.start) for span in SPANS]
        transposed, columns, sums = out.t().contiguous(), rows.t().contiguous(), back.t().contiguous()
        bank.multiply_columns(columns, runs, BATCH, transposed)
        bank.backpropagate_columns(columns, grad.t().contiguous(), runs, BATCH, sums)
        out, back = transposed.t(), sums.t()
    want, want_back = torch.empty_like(out, dtype=torch.float64), torch.ones_like(back, dtype=torch.float64)
    want_bank = torch.zeros(4, WIDTH, OUT, dtype=torch.float64)
    for span in SPANS:
        own = slice(span.row * BATCH, (span.row + span.stop - span.start) * BATCH)
        pairs = slice(span.start * BATCH, span.stop * BATCH)
        want[pairs] = rows[own].double() @ weights[span.entry].double()
        want_back[own] += grad[pairs].double() @ weights[span.entry].double().t()
        want_bank[span.entry] += rows[own].double().t() @ grad[pairs].double()
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 0.06}
    torch.testing.assert_close(out.double(), want, **tolerance)
    torch.testing.assert_close(back.double(), want_back, **tolerance)
    torch.testing.assert_close(bank.gradient().double(), want_bank, **tolerance)
