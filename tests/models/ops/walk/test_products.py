"""Grouped products equal the loop, are used only where a kernel takes them, and wait for nothing."""

import pytest
import torch

from models import OffsetGrid, Translution
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk import products
from models.ops.walk.chunks import Runs, Span
from models.ops.walk.products import Bank
from models.ops.walk.schedule import whole_schedule

BATCH, WIDTH, OUT = 3, 16, 8
GRIDS = [
    OffsetGrid((3, 4)),
    OffsetGrid((3, 4), class_token=True),
    OffsetGrid((6,), causal=True),
    OffsetGrid((3, 4), share="clip(1)"),  # several runs have one entry
]


@pytest.fixture
def grouped(monkeypatch):
    """Call it to force the grouped path for bfloat16 on this device; returns the list of its calls."""

    def force():
        calls, product = [], products.grouped_mm
        monkeypatch.setattr(products, "_has_kernel", lambda rows: rows.dtype == torch.bfloat16)
        monkeypatch.setattr(products, "grouped_mm", lambda *a, **k: calls.append(a) or product(*a, **k))
        return calls

    return force


def all_products(grid):
    """Every product of one pass over the chunks of classes, in bfloat16 with a float32 bank."""
    generator = torch.Generator().manual_seed(0)
    bank = Bank(torch.randn(grid.num_entries, WIDTH, OUT, generator=generator))
    results = []
    for chunk in whole_schedule(grid).chunks(BATCH, 100, 2 * 12 * BATCH * 100, torch.device("cpu")):
        runs = chunk.runs["key"]
        n = BATCH * runs.spans[-1].stop
        rows, grad = (torch.randn(n, w, generator=generator).bfloat16() for w in (WIDTH, OUT))
        out, back = torch.empty(n, OUT).bfloat16(), torch.zeros(n, WIDTH)
        bank.multiply(rows, runs, BATCH, out)
        bank.multiply_back(grad, runs, BATCH, back)
        results += [out, back.clone()]
        bank.multiply_back(grad, runs, BATCH, back)
        bank.add_gradient(rows, grad, runs, BATCH)
        results.append(back)
    return [*results, bank.gradient()]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grouped_products_equal_the_loop(grid, grouped):
    expected = all_products(grid)
    calls = grouped()
    got = all_products(grid)
    assert calls
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_grouped_products_give_the_operator_the_same_gradients(grouped):
    torch.manual_seed(0)
    layer = Translution(16, OffsetGrid((3, 4), class_token=True), 2, 8)
    x = torch.randn(2, 13, 16, requires_grad=True)

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        return [out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])]

    expected = results()
    calls = grouped()
    for a, b in zip(results(), expected, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()
    assert len(calls) == 3 + 3 + 6  # forward, again in backward, and its own


@pytest.mark.parametrize(
    ("rows_width", "width", "runs", "dtype", "taken"),
    [
        (16, 8, 2, torch.bfloat16, True),
        (12, 8, 2, torch.bfloat16, False),  # strides must be multiples of 16 bytes
        (16, 12, 2, torch.bfloat16, False),
        (16, 8, 1, torch.bfloat16, False),
        (16, 8, 1024, torch.bfloat16, False),
        (16, 8, 2, torch.float32, False),
    ],
)
def test_the_grouped_kernel_gets_only_what_it_takes(rows_width, width, runs, dtype, taken, grouped):
    rows = torch.empty(runs, rows_width, dtype=dtype)
    spans = Runs([Span(i, i, i + 1) for i in range(runs)])
    assert not products._grouped(rows, width, spans)
    grouped()
    assert products._grouped(rows, width, spans) == taken


@pytest.mark.parametrize("use_groups", [False, True], ids=["loop", "grouped"])
@pytest.mark.parametrize("keep", [False, True], ids=["recompute", "keep"])
@pytest.mark.parametrize("workspace", [1, 64 << 20], ids=["blocks", "classes"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nothing_waits_for_the_device_or_depends_on_data(grid, workspace, keep, use_groups, grouped):
    """Meta tensors have no data: .item(), nonzero() and the like raise on them."""
    calls = grouped() if use_groups else []
    N, K = grid.num_tokens, grid.num_entries
    x = torch.empty(N, 2, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    banks = [torch.empty(K, 16, 16, device="meta", requires_grad=True) for _ in "qkv"]
    q, k, v = (Operand(0, bank) for bank in range(3))
    (out,) = streamed(Recipe(((q, k),), (v,), 2, 0.3, keep, workspace), whole_schedule(grid), [x], banks)
    out.float().sum().backward()
    assert all(bank.grad is not None and bank.grad.shape == bank.shape for bank in banks)
    assert bool(calls) == (use_groups and workspace > 1)
