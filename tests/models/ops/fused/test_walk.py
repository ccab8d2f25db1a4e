"""The fused walk equals the definition, values and all gradients, on odd shapes; kernels are interpreted."""

import os
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from unittest import mock

import pytest
import torch

from models.offsets import OffsetGrid
from models.ops.fused.walk import FusedWalk
from models.ops.recipe import Operand
from tests.models.ops.fused import interpreted
from tests.models.ops.fused.interpreted import Case
from tests.models.ops.fused.launches import full_translution

with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
PAIR = OffsetGrid((2, 2), class_token=True)


@pytest.fixture(scope="module")
def interpreter():
    """Runs a function in a process whose Triton interprets, whatever this one has imported before."""
    with interpreted.interpreter() as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=100)


CASES = {
    **{f"relative {name}": Case(PAIR, relative=name) for name in ("q", "k", "v", "qk", "qv", "kv", "qkv")},
    "sequence": Case(OffsetGrid((5,))),
    "causal": Case(OffsetGrid((5,), causal=True)),
    "causal, an offset at a time": Case(OffsetGrid((5,), causal=True), workspace=1),
    "three dimensions": Case(OffsetGrid((2, 3, 2)), batch=1, heads=1),
    "a batch of more than a tile": Case(OffsetGrid((3,), class_token=True), batch=19, heads=1),
    "channels that end inside a step": Case(OffsetGrid((3,), class_token=True), channels=24, heads=3),
    "heads that are no power of two": Case(PAIR, head_dim=12),
    "heads narrower than a tile": Case(PAIR, head_dim=4, heads=3),
    "a class at a time": Case(OffsetGrid((2, 3), class_token=True), workspace=1),
    "shared entries, a class at a time": Case(
        OffsetGrid((3, 3), class_token=True, share="clip(1)"), batch=2, heads=1, workspace=1
    ),
    "one entry for all": Case(OffsetGrid((2, 2), class_token=True, share="clip(0)")),
    "kept": Case(PAIR, keep=True),
    "kept values": Case(PAIR, keep=True, relative="v"),
    "kept, a class at a time": Case(PAIR, keep=True, workspace=1),
}


@with_triton
@pytest.mark.parametrize("name", CASES)
def test_the_fused_walk_equals_the_definition(interpreter, name):
    assert max(interpreter(interpreted.errors, CASES[name])) < 1e-5


@with_triton
@pytest.mark.parametrize(
    "case",
    [
        Case(PAIR),
        Case(PAIR, bank_dtype=torch.float32),
        Case(PAIR, bank_dtype=torch.float32, workspace=1),
        Case(OffsetGrid((4,), class_token=True, share="log"), workspace=1),
        Case(PAIR, keep=True),
    ],
    ids=["banks too", "float32 banks", "float32 banks, cast a class at a time", "shared", "kept"],
)
def test_bfloat16_errs_no_more_than_torch_operators_do(interpreter, case):
    fused, torchs = interpreter(interpreted.bfloat16_errors, case)
    assert all(ours < 1.1 * theirs for ours, theirs in zip(fused, torchs, strict=True)), (fused, torchs)


@with_triton
@pytest.mark.parametrize(
    ("grid", "ranks"),
    [(OffsetGrid((2, 3), class_token=True), 2), (OffsetGrid((6,), causal=True), 4)],
    ids=str,
)
def test_shards_of_the_offsets_merge_to_the_whole(interpreter, grid, ranks):
    """Of 6 causal tokens on 4 ranks the last has the offset 3 alone, which three queries never meet."""
    assert max(interpreter(interpreted.shard_errors, Case(grid, heads=1), ranks)) < 1e-5


@with_triton
def test_a_sample_that_is_nan_spoils_no_other(interpreter):
    """Rows without a pair at a step are given the first token's of the first sample."""
    assert interpreter(interpreted.samples_with_nan, Case(OffsetGrid((5,), causal=True))) == [0]


@with_triton
def test_without_pairs_nothing_is_attended(interpreter):
    assert interpreter(interpreted.nothing_here, Case(PAIR)) == (True, True, True)


@with_triton
def test_two_runs_give_the_same_bits(interpreter):
    case = Case(OffsetGrid((3,), class_token=True, share="clip(1)"), dtype=torch.bfloat16, workspace=1)
    assert interpreter(interpreted.repeats, case)


@with_triton
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
def test_the_operators_pass_torchs_checks(interpreter, keep):
    interpreter(interpreted.check_operators, Case(OffsetGrid((3,)), heads=1, keep=keep))


def test_passes_run_on_the_meta_device():
    recipe, schedule, sources, banks = full_translution(PAIR, 4, 64)
    lse, (out,), kept = FusedWalk.forward(replace(recipe, keep=True), schedule, sources, banks)
    assert lse.shape == (5, 4, 1)
    assert out.shape == (5, 4, 1, 64)
    assert [k.shape for k in kept] == [(25, 4, 1, 64)] * 3
    grad_sources, grad_banks = FusedWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [out])
    assert [(g.shape, g.dtype) for g in grad_sources] == [(sources[0].shape, torch.float32)]
    assert [(g.shape, g.dtype) for g in grad_banks] == [(bank.shape, bank.dtype) for bank in banks]


def test_why_not_says_what_is_missing():
    recipe, schedule, _, banks = full_translution(PAIR, 4, 64)

    def why(recipe=recipe, dtype=torch.bfloat16, device="meta", channels=64):
        x = torch.empty(5, 4, channels, dtype=dtype, device=device)
        W = [torch.empty(bank.shape[0], channels, 64, dtype=dtype, device=device) for bank in banks]
        return FusedWalk.why_not(recipe, schedule, [x], W)

    with mock.patch("models.ops.fused.walk.find_spec", return_value=None):
        assert why() == "triton is not installed"
    with mock.patch("models.ops.fused.walk.find_spec", return_value="here"), mock.patch.dict(os.environ):
        os.environ.pop("TRITON_INTERPRET", None)
        assert why() is None
        assert "CUDA" in why(device="cpu")
        assert "float64" in why(dtype=torch.float64)
        assert "α" in why(replace(recipe, values=(Operand(0), Operand(0))))
        assert "multiple of 8" in why(channels=60)


def test_importing_the_walk_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import models.ops.fused.walk, models.ops.fused.cost"
    context = get_context("spawn")
    process = context.Process(target=exec, args=(code,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
