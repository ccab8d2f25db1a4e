"""Comparing the operator's kernels: what is right agrees, and planted errors are caught."""

import pytest
import torch

from models.mixers.kernel_check import CASES, Check, check_kernels, relative_error
from models.ops import kernel_choice
from models.ops.streamed import PairWalk

CPU = torch.device("cpu")
FULL = [case for case in CASES if "α" not in case.name]


class SlightlyOff(PairWalk):
    """One gradient of a bank is wrong by a tenth."""

    @staticmethod
    def backward(*arguments):
        sources, banks = PairWalk.backward(*arguments)
        banks[-1] = banks[-1] * 1.1
        return sources, banks


class Restless(PairWalk):
    """Two runs differ in their last bit."""

    runs = 0

    @staticmethod
    def forward(*arguments):
        lse, outs, kept = PairWalk.forward(*arguments)
        Restless.runs += 1
        outs[0].view(-1)[0] *= 1 + Restless.runs * 1e-7
        return lse, outs, kept


class Broken(PairWalk):
    @staticmethod
    def forward(*arguments):
        raise RuntimeError("out of shared memory\nand more")


@pytest.fixture
def fused(monkeypatch):
    """Call it to put a walk of this file in the place of the fused one."""
    monkeypatch.setattr(kernel_choice, "_choices", {})
    return lambda name: monkeypatch.setitem(kernel_choice._WALKS, ("fused", "full"), (__name__, name))


def compared(kernel, cases=FULL[:1]):
    return [check for check in check_kernels(CPU, cases) if check.kernel == kernel and check.reason is None]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_loop_agrees_with_the_equations(case):
    checks = compared("loop", [case])
    assert [check.dtype for check in checks] == [torch.float32, torch.bfloat16]
    assert all(check.agrees for check in checks), checks
    assert checks[0].error < 1e-6


def test_a_wrong_gradient_is_caught(fused):
    fused("SlightlyOff")
    checks = compared("fused")
    assert len(checks) == 2
    assert not any(check.agrees for check in checks)
    assert all(check.error == pytest.approx(0.1, rel=0.1) for check in checks)


def test_runs_that_differ_are_caught(fused):
    fused("Restless")
    (check, _) = compared("fused")
    assert check.error < 1e-5
    assert not check.repeats
    assert not check.agrees


def test_a_kernel_that_fails_is_caught(fused):
    fused("Broken")
    checks = compared("fused")
    assert not any(check.agrees for check in checks)
    assert checks[0].failure == "out of shared memory"


def test_what_cannot_run_is_passed_over_with_its_reason():
    checks = [check for check in check_kernels(CPU, FULL[:1]) if check.kernel == "grouped"]
    assert all("CUDA device" in str(check.reason) for check in checks)


def test_not_a_number_does_not_agree():
    wanted = [torch.ones(2), torch.ones(2)]
    error = relative_error([torch.ones(2), torch.tensor([1, torch.nan])], wanted)
    assert not Check("", torch.float32, "fused", error).agrees
    assert not Check(
        "", torch.float32, "fused", relative_error([wanted[0] * torch.nan, wanted[1]], wanted)
    ).agrees
