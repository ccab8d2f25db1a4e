"""What the operator holds in memory: a cap on temporaries that changes no result, nothing of size N²."""

from dataclasses import replace

import pytest
import torch

from launch.bench.peak_memory import peak_memory
from models import OffsetGrid, Translution
from models.dealing import deal
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.schedule import Schedule, whole_schedule

CPU = torch.device("cpu")


class Pass:
    """Forward and backward of full Translution of width C = D on random inputs."""

    def __init__(self, grid, batch, width, heads, workspace=64 << 20, keep=False, dtype=torch.float32):
        torch.manual_seed(0)
        self.x = torch.randn(grid.num_tokens, batch, width, dtype=dtype, requires_grad=True)
        shape = (grid.num_entries, width, width)
        self.banks = [torch.randn(shape, dtype=dtype).mul_(width**-0.5).requires_grad_() for _ in "qkv"]
        self.grad_out = torch.randn(self.x.shape, dtype=dtype)
        q, k, v = (Operand(0, bank) for bank in range(3))
        self.recipe = Recipe(((q, k),), (v,), heads, 0.1, keep, workspace)
        self.schedule = whole_schedule(grid)

    def __call__(self):
        (out,) = streamed(self.recipe, self.schedule, [self.x], self.banks)
        return [out.detach(), *torch.autograd.grad(out, [self.x, *self.banks], self.grad_out)]

    def extra(self):
        """Peak bytes beyond inputs and the banks' gradients; the tables must have been built."""
        return peak_memory(self, CPU) - sum(bank.nbytes for bank in self.banks)


def extra(*arguments, **options):
    warm = Pass(*arguments, **options)
    warm()
    return warm.extra()


@pytest.mark.parametrize(
    "grid", [OffsetGrid((3, 4), class_token=True), OffsetGrid((9,), causal=True)], ids=str
)
def test_results_are_the_same_under_every_cap(grid, monkeypatch):
    """A cap smaller than one sample's largest block works on one sample and block at a time."""
    steps, batch_slice = [], Schedule.batch_slice
    monkeypatch.setattr(Schedule, "batch_slice", lambda *a: steps.append(batch_slice(*a)) or steps[-1])
    expected = Pass(grid, 5, 8, 2, dtype=torch.float64)()
    pair_bytes = 2 * (2 * 8 + 3 * 8) * 8
    for block_samples in (0.1, 1, 2.5, 4):
        workspace = int(block_samples * whole_schedule(grid).largest_block * pair_bytes)
        for got, want in zip(Pass(grid, 5, 8, 2, workspace, dtype=torch.float64)(), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert sorted(set(steps)) == [1, 2, 4, 5]


class Part:
    """A combine hook that records one rank's partial result and passes it on."""

    def merge(self, lse, outs):
        self.lse, self.outs = lse.clone(), [out.clone() for out in outs]
        return lse, outs


@pytest.mark.parametrize("workspace", [1 << 10, 64 << 20], ids=["a class at a time", "all at once"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("length", [6, 7])
def test_partial_causal_softmaxes_merge_even_if_some_ranks_have_no_pair_of_a_query(length, ranks, workspace):
    """Of 6 tokens on 4 ranks the last has the offset 3 alone, which three queries never meet."""
    grid = OffsetGrid((length,), causal=True)
    whole = Pass(grid, 2, 8, 2, dtype=torch.float64)
    (expected, *_), parts = whole(), []
    for share in deal(whole.schedule, ranks):
        schedule = share.schedule(whole.schedule)
        banks = [bank[list(share.entries)] for bank in whole.banks]
        recipe = replace(whole.recipe, workspace=workspace)
        parts.append(Part())
        streamed(recipe, schedule, [whole.x], banks, parts[-1])
    weights = torch.stack([part.lse for part in parts]).softmax(0).unsqueeze(-1)
    combined = sum(weight * part.outs[0] for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(combined.flatten(2), expected, rtol=0, atol=1e-12)


def test_peak_extra_memory_of_14_by_14_is_at_most_12_times_x():
    """B = 8, C = 192, with recompute; blocks there, whose slices are no tables to be built before."""
    run = Pass(OffsetGrid((14, 14)), 8, 192, 3)
    assert run.extra() <= 12 * run.x.nbytes


def test_peak_extra_memory_does_not_grow_with_the_pairs():
    """As many tokens in the batch, four times as many pairs: as much memory; not so when q, k, v are kept."""
    few, many = (OffsetGrid((6, 6)), 16, 32, 1), (OffsetGrid((12, 12)), 4, 32, 1)
    assert extra(*many, workspace=1 << 20) <= 1.05 * extra(*few, workspace=1 << 20)
    assert extra(*many, workspace=1 << 20, keep=True) > 3 * extra(*few, workspace=1 << 20, keep=True)


def test_the_workspace_caps_the_temporaries():
    shape = (OffsetGrid((6, 6)), 16, 32, 1)
    least, *more = (extra(*shape, workspace=cap) for cap in (1 << 16, 1 << 18, 1 << 20))
    assert least < more[0] < more[1]
    assert more[0] <= least + (1 << 18)
    assert more[1] <= least + (1 << 20)


class Merged:
    """Merges the partial results of several parts, recorded by `Part`, and gives backward what they need."""

    def __init__(self, parts):
        lses = torch.stack([part.lse for part in parts])
        self.lse, weights = lses.logsumexp(0), lses.softmax(0).unsqueeze(-1)
        self.outs = [
            sum(weight * out for weight, out in zip(weights, outs, strict=True))
            for outs in zip(*(part.outs for part in parts), strict=True)
        ]

    def merge(self, lse, outs):
        return self.lse, self.outs

    def sum_gradients(self, grad_sources, grad_banks):
        return grad_sources


VARIANTS = {
    "full": {},
    "v": {"relative": "v"},
    "qk": {"relative": "qk"},
    "alpha": {"rank": 3},
    "alpha kv": {"rank": 3, "relative": "kv"},
}
PARTED = [
    OffsetGrid((4, 3), class_token=True),
    OffsetGrid((9,), causal=True),
    OffsetGrid((12, 11), class_token=True, share="log"),
    OffsetGrid((40,), causal=True, share="clip(2)"),
    OffsetGrid((5, 4), class_token=True, share="clip(0)"),
]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("grid", PARTED, ids=str)
def test_parts_of_the_pairs_merge_to_the_whole(grid, variant, ranks):
    """Values, and the sums of the parts' gradients, of every walk."""
    torch.manual_seed(0)
    layer = Translution(6, grid, 2, 4, **VARIANTS[variant]).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    sources = [s.detach() for s in layer._sources(torch.randn(grid.num_tokens, 2, 6, dtype=torch.double))]
    banks = [layer.get_parameter(f"{name}_bank").detach() for name in layer.relative]

    def run(schedule, banks, combine=None):
        inputs = [t.clone().requires_grad_() for t in (*sources, *banks)]
        outs = streamed(layer.recipe, schedule, inputs[: len(sources)], inputs[len(sources) :], combine)
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
        return outs, torch.autograd.grad(outs, inputs, grads)

    expected, expected_grads = run(layer.schedule, banks)
    shares = deal(layer.schedule, ranks)
    local = [banks if s.entries is None else [bank[list(s.entries)] for bank in banks] for s in shares]
    parts = [Part() for _ in shares]
    for share, own, part in zip(shares, local, parts, strict=True):
        with torch.no_grad():
            streamed(layer.recipe, share.schedule(layer.schedule), sources, own, part)
    total = [torch.zeros_like(grad) for grad in expected_grads]
    for share, own in zip(shares, local, strict=True):
        outs, grads = run(share.schedule(layer.schedule), own, Merged(parts))
        for out, want in zip(outs, expected, strict=True):
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
        for i, grad in enumerate(grads):
            if i < len(sources) or share.entries is None:
                total[i] += grad
            else:
                total[i][list(share.entries)] += grad
    for grad, want in zip(total, expected_grads, strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("share", ["log", "clip(3)"])
def test_memory_of_shared_entries_is_linear_in_the_length(share):
    """Twice the tokens, at most twice the memory and a few more entries."""
    short, long = (OffsetGrid((n,), causal=True, share=share) for n in (512, 1024))
    assert extra(long, 2, 32, 2) < 2.2 * extra(short, 2, 32, 2)
