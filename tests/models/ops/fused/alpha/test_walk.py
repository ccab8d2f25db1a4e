"""α-Translution's kernels equal the definition, on the CPU in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.offsets import OffsetGrid
from models.ops.fused.alpha.walk import AlphaWalk
from models.ops.recipe import Operand, Recipe
from models.ops.walk.schedule import whole_schedule

SMALL = {"shape": (2, 2), "grid": {"class_token": True}, "batch": 3, "heads": 2, "width": 5, "rank": 3}
TINY = SMALL | {"shape": (2,)}
CASES: dict[str, dict[str, Any]] = {
    "relative-q": SMALL | {"relative": "q", "batch": 1, "heads": 1},
    **{f"relative-{name}": TINY | {"relative": name} for name in ("k", "v", "qv", "kv")},
    "again": TINY | {"relative": "qkv", "grid": {}, "again": True, "opcheck": True, "batch": 1, "heads": 1},
    "few segments": SMALL | {"relative": "qkv", "shape": (3,), "grid": {}, "processors": 1},
    "heads in two chunks": SMALL
    | {"relative": "qkv", "shape": (2,), "grid": {}, "heads": 5, "rank": 8, "batch": 1},
    "no class token": SMALL | {"relative": "qkv", "shape": (1, 4), "grid": {}, "rank": 8, "batch": 1},
    "three dimensions": SMALL | {"relative": "qk", "shape": (2, 1, 2), "grid": {}, "batch": 1},
    "causal": SMALL
    | {"relative": "qkv", "shape": (7,), "grid": {"causal": True}, "batch": 1, "processors": 2},
    "causal v": SMALL | {"relative": "v", "shape": (9,), "grid": {"causal": True}, "batch": 2},
    "shared": SMALL | {"relative": "v", "shape": (4,), "grid": {"class_token": True, "share": "log"}},
    "bands by offset": SMALL
    | {"relative": "qv", "shape": (5,), "grid": {"causal": True, "share": "log"}, "batch": 1}
    | {"bands": True, "shards": 2},
    "one matrix": TINY | {"relative": "kv", "grid": {"class_token": True, "share": "clip(0)"}},
    "shards": SMALL | {"relative": "qkv", "shape": (3,), "shards": 3, "batch": 1, "heads": 1},
    "causal shards": SMALL | {"relative": "v", "shape": (5,), "grid": {"causal": True}, "shards": 2},
    "keep": TINY | {"relative": "qv", "options": {"keep": True}, "batch": 2},
    "slices of samples": SMALL
    | {"relative": "qkv", "shape": (2,), "grid": {}, "batch": 17, "options": {"workspace": 1280}},
    "slices of queries": SMALL
    | {"relative": "qk", "shape": (17,), "grid": {"causal": True}, "batch": 1, "heads": 1}
    | {"options": {"workspace": 16}, "processors": 2},
    "bfloat16": SMALL
    | {"relative": "qkv", "shape": (4,), "batch": 2, "dtype": "bfloat16", "width": 16, "rank": 8},
}


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, Any]]:
    """The errors of every case; one process runs them all, for the interpreter is chosen as triton loads."""
    pytest.importorskip("triton")
    root = Path(__file__).parents[5]
    cases = [case | {"seed": seed} for seed, case in enumerate(CASES.values())]
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("interpreted.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(zip(CASES, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "bfloat16"])
def test_kernels_equal_the_definition(name: str, errors: dict[str, dict[str, Any]]) -> None:
    assert max(errors[name]["kernels"]) < 1e-5


def test_bfloat16_errs_as_much_as_the_loop(errors: dict[str, dict[str, Any]]) -> None:
    """Each out and gradient against float64, beside the error of the pass in torch's operators."""
    for kernels, reference in zip(*errors["bfloat16"].values(), strict=True):
        assert kernels < 1.5 * reference + 1e-3


def test_a_second_run_gives_the_same_bits(errors: dict[str, dict[str, Any]]) -> None:
    assert errors["again"]["same"]


def test_fake_operators_tell_the_shapes_of_real_ones(errors: dict[str, dict[str, Any]]) -> None:
    assert len(errors["again"]["checked"]) == 9


def _recipe() -> Recipe:
    q, k, v = (Operand(3 + i, i) for i in range(3))
    return Recipe(((Operand(0), Operand(1)), (q, k)), (Operand(2), v), 2, 0.1)


@pytest.mark.parametrize(
    ("dtype", "device", "rank", "reason"),
    [
        (torch.bfloat16, "meta", 8, None),
        (torch.bfloat16, "cpu", 8, "need a CUDA device"),
        (torch.float64, "meta", 8, "bfloat16 or float32"),
        (torch.bfloat16, "meta", 72, "columns"),
    ],
)
def test_why_not_names_the_reason(dtype: torch.dtype, device: str, rank: int, reason: str | None) -> None:
    pytest.importorskip("triton")
    schedule = whole_schedule(OffsetGrid((2, 3)))
    sources = [
        torch.empty(6, 4, width, dtype=dtype, device=device) for width in (32, 32, 32, *[2 * rank] * 3)
    ]
    banks = [torch.empty(15, 2 * rank, 2 * rank, device=device) for _ in range(3)]
    said = AlphaWalk.why_not(_recipe(), schedule, sources, banks)
    assert said is None if reason is None else reason in (said or "")


def test_without_triton_the_walk_says_so() -> None:
    code = """
import sys
sys.modules["triton"] = None
from models.ops.fused.alpha.walk import AlphaWalk
sys.exit(AlphaWalk.why_not(None, None, [], []) != "triton is not installed")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[5])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
