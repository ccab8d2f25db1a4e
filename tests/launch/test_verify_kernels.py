"""`translution verify --device`: one table, and an exit code."""

import pytest
import torch

from launch.card_report import describe
from models.mixers.kernel_check import CASES
from models.ops import kernel_choice

CPU = torch.device("cpu")


def test_the_command_ends_in_a_table(translution):
    outcome = translution("verify", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert describe(CPU) in outcome.out
    assert "2-D, bfloat16, loop" in outcome.out
    assert f"all {2 * len(CASES)} agree" in outcome.out


def test_the_command_fails_where_a_kernel_is_wrong(monkeypatch, translution):
    place = ("tests.models.mixers.test_kernel_check", "SlightlyOff")
    monkeypatch.setitem(kernel_choice._WALKS, ("fused", "full"), place)
    monkeypatch.setattr(kernel_choice, "_choices", {})
    outcome = translution("verify", "--device", "cpu")
    assert outcome.code == 1
    assert "DISAGREES" in outcome.out


def test_a_missing_card_is_one_line(translution):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    outcome = translution("verify", "--device", "cuda")
    assert outcome.code == 2
    assert outcome.err.strip() == "error: --device cuda: this machine has no CUDA device that torch can use"
