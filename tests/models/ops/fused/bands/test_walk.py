"""The kernels of bands equal the definition, values and all gradients, on odd shapes; interpreted."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from models.offsets import OffsetGrid
from models.ops.fused.bands.walk import BandWalk
from models.ops.recipe import Operand
from tests.models.ops.fused.bands import interpreted
from tests.models.ops.fused.bands.launches import shared_layer
from tests.models.ops.fused.interpreted import Case, interpreter

with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
CAUSAL = OffsetGrid((5,), causal=True, share="log")
IMAGE = OffsetGrid((3, 4), class_token=True, share="clip(1)")


def small(grid: OffsetGrid, **options) -> Case:
    return Case(grid, **{"batch": 1, "heads": 1, **options})


@pytest.fixture(scope="module")
def interpret():
    """Runs a function in a process whose Triton interprets, whatever this one has imported before."""
    with interpreter() as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=100)


CASES = {
    **{f"relative {name}": small(CAUSAL, relative=name) for name in ("q", "k", "v", "qk", "qv", "kv")},
    "several tiles": small(OffsetGrid((19,), causal=True, share="log")),
    "both sides of a sequence": small(OffsetGrid((6,), share="clip(1)")),
    "class token": small(IMAGE),
    "three dimensions": small(OffsetGrid((2, 3, 2), share="clip(1)")),
    "one entry for all": small(OffsetGrid((2, 3), class_token=True, share="clip(0)")),
    "heads narrower than a tile": small(CAUSAL, head_dim=12, channels=24, heads=3),
    "kept": small(CAUSAL, keep=True),
}


@with_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_equal_the_definition(interpret, name):
    assert max(interpret(interpreted.errors, CASES[name])) < 1e-5


@with_triton
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
def test_so_they_do_for_some_samples_at_a_time(interpret, keep):
    case = small(CAUSAL, batch=3, relative="kv", keep=keep)
    rows = 2 * 13 * 2 * 16 * 4  # of a sample: 13 keys and as many values, with their gradients
    assert max(interpret(interpreted.errors, replace(case, workspace=2 * rows), 2)) < 1e-5


@with_triton
@pytest.mark.parametrize("grid", [CAUSAL, IMAGE], ids=["causal", "image"])
def test_bfloat16_errs_little_more_than_torch_operators_do(interpret, grid):
    """Weights of pairs are rounded before products, which torch's walk over bands does in float32."""
    ours, theirs = interpret(interpreted.bfloat16_errors, small(grid))
    assert all(a < 1.5 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@with_triton
@pytest.mark.parametrize(("grid", "ranks"), [(IMAGE, 2), (CAUSAL, 3)], ids=["by entry", "bands in pieces"])
def test_shares_of_the_bands_merge_to_the_whole(interpret, grid, ranks):
    assert max(interpret(interpreted.shard_errors, small(grid), ranks)) < 1e-5


@with_triton
def test_two_runs_give_the_same_bits(interpret):
    assert interpret(interpreted.repeats, small(CAUSAL, batch=2))


@with_triton
def test_the_operators_pass_torchs_checks(interpret):
    interpret(interpreted.check_operators, small(CAUSAL, keep=True, batch=2, workspace=1))


def test_passes_run_on_the_meta_device():
    recipe, schedule, sources, banks = shared_layer(IMAGE, 4, 64)
    lse, (out,), kept = BandWalk.forward(replace(recipe, keep=True), schedule, sources, banks)
    assert lse.shape == (13, 4, 1)
    assert (out.shape, out.dtype) == ((13, 4, 1, 64), torch.float32)
    queries, keys = schedule.rows
    assert [k.shape for k in kept] == [(queries, 4, 64), (keys, 4, 64), (keys, 4, 64)]
    grad_sources, grad_banks = BandWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [out])
    assert [(g.shape, g.dtype) for g in grad_sources] == [(sources[0].shape, torch.float32)]
    assert [(g.shape, g.dtype) for g in grad_banks] == [(bank.shape, bank.dtype) for bank in banks]


def test_why_not_says_what_is_missing():
    recipe, schedule, (x,), banks = shared_layer(IMAGE, 4, 64)

    def why(recipe=recipe, dtype=torch.bfloat16, channels=64):
        W = [torch.empty(bank.shape[0], channels, 64, dtype=dtype, device="meta") for bank in banks]
        return BandWalk.why_not(recipe, schedule, [x.new_empty((13, 4, channels), dtype=dtype)], W)

    assert why() is None
    assert "float64" in why(dtype=torch.float64)
    assert "α" in why(replace(recipe, values=(Operand(0), Operand(0))))
    assert "multiple of 8" in why(channels=60)
