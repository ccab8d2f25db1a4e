"""The kernels of the grouped walk compile for every card without spilling registers."""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("triton interprets here", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from models.ops.grouped import kernels  # noqa: E402

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin"
TARGETS = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
ROWS = {"H": 12, "E": 64, "EP": 64, "Q_PAIR": True, "K_PAIR": True, "V_PAIR": True}
KERNELS = {
    "merge": {**ROWS, "BS": 16},
    "gradients": {**ROWS, "BR": 32},
    "sum_rows": {"BS": 16, "BC": 128},
    "gather": {"BLOCK": 2048},
    "scatter": {"BLOCK": 2048},
}
INTEGERS = ["first", "pair", "key", "query", "entries", "again"]
FLOATS = ["lse", "out", "delta", "total", *(f"{t}_{n}" for t in ("bank", "total") for n in range(3))]
POINTERS = {"scale": "fp32", **dict.fromkeys(INTEGERS, "*i32"), **dict.fromkeys(FLOATS, "*fp32")}
POINTERS |= dict.fromkeys(["q", "k", "v", "dq", "dk", "dv", "dout", "rows", "packed"], "*bf16")
POINTERS |= {f"product_{n}": "*bf16" for n in range(3)}


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_spills(name, capability, tmp_path):
    function, constants = getattr(kernels, name), KERNELS[name]
    names = function.arg_names
    types = {n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in names}
    if name == "gradients":
        types["rows"] = "i32"  # a number here, rows themselves in sum_rows
    places = {(names.index(n),): value for n, value in constants.items()}
    aligned = {(n,): [["tt.divisibility", 16]] for n, kind in enumerate(types.values()) if kind[0] == "*"}
    source = ASTSource(function, types, constexprs=places, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    tool = PTXAS / ("ptxas-blackwell" if capability >= 90 else "ptxas")
    command = [tool, "-v", f"--gpu-name={TARGETS[capability]}", ptx, "-o", tmp_path / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", said), said
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None
    assert int(registers[1]) <= 168  # three blocks of 128 threads a multiprocessor
