"""Compiles the kernels that a pass of α-Translution launches, for a card that need not be there.

Run as a script: prints a JSON line for each kernel. Launches are recorded, and compiled with the types,
constants and tile shapes they would have on the card, by Triton's own assembler.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.delta import kernel
from models.ops.delta.operator import row_dots
from models.ops.fused.alpha import dense, relative, tiles
from models.ops.fused.alpha.walk import AlphaWalk

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int8: "*i8"}
seen: set[tuple[object, ...]] = set()


class Recorder:
    """Stands for a kernel; a launch compiles it."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability

    def __getitem__(self, grid: object) -> Any:
        return self._compile

    def _compile(self, *arguments: Any, num_warps: int, num_stages: int = 1) -> None:
        signature, constants, attributes = {}, {}, {}
        for place, (parameter, value) in enumerate(zip(self.kernel.params, arguments, strict=True)):
            one = isinstance(value, int) and value == 1  # a constant to Triton, like multiples of 16
            if parameter.is_constexpr or one:
                signature[parameter.name], constants[(place,)] = "constexpr", value
                continue
            signature[parameter.name] = _type(value)
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        named = zip(signature, arguments, strict=True)  # QUERIES only changes the order of two indices
        told = [value for name, value in named if name.isupper() and len(name) > 1 and name != "QUERIES"]
        key = (self.kernel.fn.__name__, *signature.values(), *told, num_warps, num_stages)
        if key in seen:
            return
        seen.add(key)
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        said = _assemble(compiled.asm["ptx"], ARCHITECTURES[self.capability])
        result = {
            "kernel": key[0],
            "capability": self.capability,
            "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
            "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
            "shared": compiled.metadata.shared,
        }
        print(json.dumps(result), flush=True)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def _assemble(ptx: str, architecture: str) -> str:
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas-blackwell"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def compile_pass(capability: int, heads: int, relative_: str, dtype: torch.dtype, causal: bool) -> None:
    """Both ways of one layer with heads of 64, rank 8 and 16 samples; nothing is computed."""
    for module in (dense, relative):
        module._kernel = lambda *name, find=module._kernel: Recorder(find(*name), capability)
    tiles.generation = lambda x: capability // 10
    grid = OffsetGrid((8,), causal=True) if causal else OffsetGrid((2, 4), class_token=True)
    mixer = Translution(64 * heads, grid, heads, relative=relative_, rank=8)
    x_NBC = torch.zeros(grid.num_tokens, 256, mixer.dim)
    sources = [source.to(dtype) for source in mixer._sources(x_NBC)]
    banks = [mixer.get_parameter(f"{name}_bank") for name in relative_]
    lse, outs, kept = AlphaWalk.forward(mixer.recipe, mixer.schedule, sources, banks)
    grads = [out.to(dtype) for out in outs]
    AlphaWalk.backward(mixer.recipe, mixer.schedule, sources, banks, kept, lse, lse, grads)
    kernel.row_dots_kernel = Recorder(kernel.row_dots_kernel, capability)
    row_dots(grads, outs)


if __name__ == "__main__":
    capability, heads, relative_, dtype, causal = sys.argv[1:]
    compile_pass(int(capability), int(heads), relative_, getattr(torch, dtype), causal == "causal")
