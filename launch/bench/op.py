"""`translution bench op`: the operator's speed, relative to a matrix product, and its memory.

The speed of a shared machine varies, so each repetition times a large matrix product before, between and
after the operator's passes and yields one ratio. The table shows the median and range of the ratios.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from launch.bench.kernels.measured import measure_kernels, show_measured
from launch.bench.peak_memory import peak_memory
from models.offsets import OffsetGrid
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.schedule import Schedule, whole_schedule
from parallel.errors import UserError
from trainer.reporting.table import Table

SIDE = 1024  # of the matrix product
PRODUCTS = 3  # useful products per pair in a forward pass
POLICIES = ("recompute", "keep")


class Shape(NamedTuple):
    """Full Translution of width C = D; `speed` holds the targets for recompute and for keep."""

    grid: OffsetGrid
    batch: int
    width: int
    heads: int
    speed: tuple[float, float]
    memory: float | None = None  # target under recompute, in sizes of x

    @property
    def flops(self) -> int:
        """Useful FLOPs of a forward pass."""
        return self.batch * self.grid.num_pairs * PRODUCTS * 2 * self.width**2

    def __str__(self) -> str:
        grid = "×".join(map(str, self.grid.shape)) + (" causal" if self.grid.causal else "")
        return f"{grid}, B={self.batch}, C={self.width}, H={self.heads}"


SHAPES = {
    "7x7": Shape(OffsetGrid((7, 7)), 32, 192, 3, (0.60, 0.70)),
    "14x14": Shape(OffsetGrid((14, 14)), 8, 192, 3, (0.60, 0.70), memory=12),
    "4x4": Shape(OffsetGrid((4, 4)), 32, 192, 3, (0.50, 0.50)),
    "causal": Shape(OffsetGrid((160,), causal=True), 8, 192, 3, (0.55, 0.55)),
    "narrow": Shape(OffsetGrid((7, 7)), 64, 48, 1, (0.35, 0.35)),
}


def bench_op(
    names: list[str],
    repeat: int,
    compiled: bool,
    device: Literal["cpu", "cuda"],
    precision: Literal["fp32", "bf16"],
) -> dict[str, Any]:
    """Measure the named shapes, or all if none is named, under both memory policies on one thread; on CUDA
    also the layers of `bench kernels`, beside their counts.

    Raises UserError for an unknown shape, or if there is no CUDA device.
    """
    for name in names:
        if name not in SHAPES:
            raise UserError(f"--shape {name}: one of {', '.join(SHAPES)} is needed")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device")
    torch.set_num_threads(1)
    where = torch.device(device)
    machine = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    rows = []
    for name in names or SHAPES:
        for policy in POLICIES:
            print(f"measuring {name}, {policy} …", file=sys.stderr, flush=True)
            rows.append(_measure(name, policy, repeat, compiled, where, precision))
    return {
        "kernels": measure_kernels(where, repeat) if device == "cuda" else [],
        "device": f"{device} ({machine})",
        "torch": torch.__version__,
        "threads": 1,
        "precision": precision,
        "clock": "wall" if device == "cuda" else "CPU time",
        "repeat": repeat,
        "compiled": compiled,
        "matrix_side": SIDE,
        "matrix_gflops": statistics.median(row["matrix_gflops"] for row in rows),
        "tables_32x32_seconds": _table_seconds(where),
        "rows": rows,
    }


def _measure(
    name: str, policy: str, repeat: int, compiled: bool, device: torch.device, precision: str
) -> dict[str, Any]:
    shape = SHAPES[name]
    operator = _Operator(shape, policy == "keep", compiled, device, precision)
    operator.both()  # builds tables, compiles
    matrix = _matrix_product(device, precision)
    forward, both, rates, fractions = [], [], [], []
    for _ in range(repeat):
        products = [_seconds(matrix, device)]
        passes = []
        for action in (operator.forward, operator.backward):
            passes.append(_seconds(action, device))
            products.append(_seconds(matrix, device))
        rate = len(products) * 2 * SIDE**3 / sum(products)
        forward.append(passes[0])
        both.append(sum(passes))
        rates.append(rate)
        fractions.append(3 * shape.flops / sum(passes) / rate)
    gradients = sum(bank.numel() * bank.element_size() for bank in operator.banks)
    # A peak in the forward pass includes no gradients of banks.
    peak = max(peak_memory(operator.forward, device), peak_memory(operator.both, device) - gradients)
    x_bytes = operator.x.numel() * operator.x.element_size()
    return {
        "name": name,
        "shape": str(shape),
        "policy": policy,
        "useful_gflop_forward": shape.flops / 1e9,
        "useful_gflop_both": 3 * shape.flops / 1e9,
        "forward_ms": 1e3 * statistics.median(forward),
        "both_ms": 1e3 * statistics.median(both),
        "matrix_gflops": statistics.median(rates) / 1e9,
        "fraction": statistics.median(fractions),
        "fraction_range": [min(fractions), max(fractions)],
        "fraction_target": shape.speed[POLICIES.index(policy)],
        "peak_bytes": peak,
        "peak_in_x": peak / x_bytes,
        "peak_in_x_target": shape.memory if policy == "recompute" else None,
        "x_bytes": x_bytes,
        "bank_gradient_bytes": gradients,
    }


class _Operator:
    """The streamed operator of full Translution on fixed inputs."""

    def __init__(
        self, shape: Shape, keep: bool, compiled: bool, device: torch.device, precision: str
    ) -> None:
        torch.manual_seed(0)
        N, B, C, grid = shape.grid.num_tokens, shape.batch, shape.width, shape.grid
        self.x = torch.randn(N, B, C, device=device, requires_grad=True)
        self.banks = [
            torch.randn(grid.num_entries, C, C, device=device).mul_(C**-0.5).requires_grad_() for _ in "qkv"
        ]
        self._grad = torch.randn(N, B, C, device=device)
        scale = (C / shape.heads) ** -0.5
        q, k, v = (Operand(0, bank) for bank in range(3))
        self._recipe = Recipe(((q, k),), (v,), shape.heads, scale, keep, compiled=compiled)
        self._schedule = whole_schedule(grid)
        self._cast = _autocast(device, precision)
        self._out: Tensor | None = None

    def forward(self) -> None:
        with self._cast:
            (self._out,) = streamed(self._recipe, self._schedule, [self.x], self.banks)

    def backward(self) -> None:
        """Backward of the last forward pass; the gradients are dropped."""
        assert self._out is not None
        torch.autograd.grad(self._out, [self.x, *self.banks], self._grad.to(self._out.dtype))
        self._out = None

    def both(self) -> None:
        self.forward()
        self.backward()


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _matrix_product(device: torch.device, precision: str) -> Callable[[], object]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b, out = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """CPU time, which other processes do not affect; wall time on CUDA."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _table_seconds(device: torch.device) -> float:
    """Time to build the tables of a 32 × 32 grid; median of three."""

    def build() -> None:
        Schedule(OffsetGrid((32, 32))).chunks(1, 1, 1 << 30, device)

    return statistics.median(_seconds(build, device) for _ in range(3))


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print what `bench_op` measured: one JSON object, or a table and what its columns mean."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    compiled = ", compiled stage" if result["compiled"] else ""
    table = Table(
        f"Translution's operator, {result['precision']}, one thread of {result['device']}{compiled}"
    )
    for row in result["rows"]:
        title = f"{row['shape']}, {row['policy']}"
        low, high = row["fraction_range"]
        memory = row["peak_in_x_target"]
        cells = {
            "GFLOP": f"{row['useful_gflop_both']:.1f}",
            "fwd ms": f"{row['forward_ms']:.0f}",
            "fwd+bwd ms": f"{row['both_ms']:.0f}",
            "of matrix rate": f"{row['fraction']:.2f}",
            "range": f"{low:.2f}–{high:.2f}",
            "target": f"≥ {row['fraction_target']:.2f}",
            "memory MB": f"{row['peak_bytes'] / 1e6:.1f}",
            "in x": f"{row['peak_in_x']:.1f}",
            "target ": f"≤ {memory}" if memory else "",
            "∂banks MB": f"{row['bank_gradient_bytes'] / 1e6:.1f}",
        }
        for column, cell in cells.items():
            table.put(title, column, cell)
    table.show()
    print(
        f"\nGFLOP: useful ones of forward + backward, 3 + 6 products per pair; recomputation does not count."
        f"\nof matrix rate: median and range over {result['repeat']} repetitions, each against"
        f"\n  {SIDE}³ products timed before, between and after its passes; clock: {result['clock']}."
        f"\nmemory: peak of forward + backward beyond inputs and ∂banks; includes the output and ∂x."
        f"\n{SIDE}³ product: {result['matrix_gflops']:.1f} GFLOP/s. "
        f"Tables of a 32×32 grid: {result['tables_32x32_seconds']:.3f} s (target < 0.2)."
    )
    if result["kernels"]:
        show_measured(result["kernels"], result["device"], result["repeat"])
