"""Every kernel compiles for every card that the project names, with Triton's own assembler and no card:
nothing is spilled, and registers and shared memory are within the card's limits."""

import importlib
import os
import re
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
import torch

from models.offsets import OffsetGrid
from tests.models.ops.fused.launches import Launch, both_passes, full_translution, recorded

triton = pytest.importorskip("triton")

CARDS = {"ampere": (80, 163), "hopper": (90, 227), "blackwell": (100, 227)}  # architecture, KiB a block
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A process in which Triton compiles: it has to be told before triton is imported."""
    cache = str(tmp_path_factory.mktemp("triton"))
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        mock.patch.dict(os.environ, TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache),
    ):
        pool.submit(len, ()).result()
        yield pool


def variants(card: str, channels: int, batch: int) -> list[Launch]:
    """One launch of each variant of each kernel, in a pass with float32 banks."""
    grid = OffsetGrid((14, 14), class_token=True)
    with recorded(card) as launches:
        both_passes(*full_translution(grid, batch, channels, bank_dtype=torch.float32))
    switches = [tuple(a for a in launch.arguments if isinstance(a, bool)) for launch in launches]
    return list({(launch.kernel, s): launch for launch, s in zip(launches, switches, strict=True)}.values())


def signature(kernel, arguments):
    """What the compiler is told of the arguments, as at a real launch: which pointers and numbers are
    multiples of 16."""
    types, constants, attributes = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr:
            types[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, str):
            types[parameter.name], attributes[(i,)] = value, [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        else:
            types[parameter.name] = "i32"
            if not parameter.do_not_specialize and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def resources(module: str, name: str, arguments: tuple, options: dict, architecture: int) -> dict[str, int]:
    """Registers a thread, stack bytes a thread (spills are there) and shared bytes a block."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"models.ops.fused.{module}"), name)
    types, constants, attributes = signature(kernel, arguments)
    source = ASTSource(kernel, types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / f"{name}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    listing = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = {key: int(re.search(rf"{key}:(\d+)", listing)[1]) for key in ("REG", "STACK", "LOCAL")}
    products = sum(compiled.asm["ptx"].count(word) for word in ("wgmma.mma_async", "tcgen05.mma", "mma.sync"))
    return {**found, "shared": compiled.metadata.shared, "products": products}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    ("channels", "batch", "kernels"),
    [
        (768, 128, ("attend", "pair_gradients", "bank_gradients", "token_gradients")),
        (192, 32, ("attend", "pair_gradients")),
    ],
    ids=["ViT-B", "ViT-Ti"],
)
def test_kernels_fit_the_card_and_spill_nothing(compiler, card, channels, batch, kernels):
    architecture, kib = CARDS[card]
    launches = [launch for launch in variants(card, channels, batch) if launch.kernel in kernels]
    assert {launch.kernel for launch in launches} == set(kernels)
    for launch in launches:
        arguments = tuple(POINTERS[a.dtype] if isinstance(a, torch.Tensor) else a for a in launch.arguments)
        job = compiler.submit(
            resources, launch.module, launch.kernel, arguments, launch.options, architecture
        )
        found = job.result(timeout=60)
        assert found["STACK"] == found["LOCAL"] == 0, (launch.kernel, found)
        assert found["REG"] * 32 * launch.options["num_warps"] <= 65536, (launch.kernel, found)
        assert found["shared"] <= kib * 1024, (launch.kernel, found)
        assert found["products"], f"{launch.kernel} uses no tensor cores"
