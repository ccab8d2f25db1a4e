"""α-Translution's kernels compile for the cards that they are meant for, without spilling registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a block may have
PASSES = {  # heads of rank 8, relative projections, causal or not; 12 heads fill the registers
    80: ("12", "qkv", "full"),
    90: ("12", "qkv", "full"),
    100: ("3", "qkv", "causal"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, int]]]:
    """What the assembler says of each kernel, by the card's capability; two cards at a time."""
    pytest.importorskip("triton")
    root = Path(__file__).parents[5]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"  # as it is; unset, triton 3.9 warns
    script = Path(__file__).with_name("compile_kernels.py")
    processes = {}
    for capability, (heads, relative, causal) in PASSES.items():
        command = [sys.executable, script, str(capability), heads, relative, "bfloat16", causal]
        processes[capability] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    results = {}
    for capability, process in processes.items():
        said, error = process.communicate(timeout=240)
        assert process.returncode == 0, error[-3000:]
        results[capability] = [json.loads(line) for line in said.splitlines()]
    return results


@pytest.mark.parametrize("capability", PASSES)
def test_kernels_compile_without_spills(capability: int, compiled: dict[int, list[dict[str, int]]]) -> None:
    assert len(compiled[capability]) >= 13
    for kernel in compiled[capability]:
        assert kernel["spilled"] == 0, kernel
        assert kernel["registers"] <= 255, kernel
        assert kernel["shared"] <= MOST_SHARED[capability], kernel
