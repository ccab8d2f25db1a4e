"""The layers of `translution bench kernels` measured on this machine's card, beside their counts."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from launch.bench.kernels.rows import Size, layers
from launch.bench.kernels.show import row_name
from models.mixers.cost import Load
from models.mixers.counted_pass import cast_dense, count_pass
from models.mixers.interface import Mixer
from models.mixers.measured_cost import part_of
from models.ops.cards import Card, card_of
from trainer.reporting.table import Table

WARM_UP = 3  # passes before the clock starts: kernels are compiled, the allocator's pools filled


def measure_kernels(device: torch.device, repeat: int) -> list[dict[str, Any]]:
    """A row for each layer, by the kernels that are chosen there; layers too large for the memory are left
    out."""
    card, rows = card_of(device), []
    for name, size in layers():
        print(f"measuring {name} {size} …", file=sys.stderr, flush=True)
        try:
            rows.append(measure_row(size, name, card, device, repeat))
        except torch.OutOfMemoryError:
            print("  left out: out of memory", file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
    return rows


def measure_row(size: Size, name: str, card: Card, device: torch.device, repeat: int) -> dict[str, Any]:
    """One layer, forward and backward, activations in bfloat16: medians, and the count for `card`."""
    plan = size.mixer(name)
    counted = count_pass(plan, size.batch, card)
    forward, backward = layer_seconds(plan, size.batch, device, repeat)
    seconds = forward + backward
    useful = 3 * plan.cost(Load(size.batch)).forward
    return {
        "shape": size.shape,
        "share": size.share,
        "mixer": name,
        "c": size.c,
        "batch": size.batch,
        "kernel": counted.kernels[0],
        "measured_milliseconds_forward": 1e3 * forward,
        "measured_milliseconds": 1e3 * seconds,
        "counted_milliseconds_forward": 1e3 * counted.forward.seconds,
        "counted_milliseconds": 1e3 * counted.seconds,
        "measured_over_counted": seconds / counted.seconds,
        "measured_fraction": useful / card.rate / seconds,
    }


def layer_seconds(plan: Mixer, samples: int, device: torch.device, repeat: int) -> tuple[float, float]:
    """Median seconds of a forward and of a backward pass of a layer like `plan`, which is on the meta
    device."""
    torch.manual_seed(0)
    layer: nn.Module = cast_dense(part_of(plan, 1, 1), torch.bfloat16).to_empty(device=device)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    shape = (samples, plan.num_tokens, plan.dim)
    x = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(shape, device=device, dtype=torch.bfloat16)
    inputs = [x, *layer.parameters()]
    out: list[Tensor] = []

    def forward() -> None:
        out[:] = [layer(x)]

    def backward() -> None:
        torch.autograd.grad(out.pop(), inputs, grad)

    times: list[tuple[float, float]] = []
    for _ in range(WARM_UP + repeat):
        times.append((seconds_of(forward, device), seconds_of(backward, device)))
    forwards, backwards = zip(*times[WARM_UP:], strict=True)
    return statistics.median(forwards), statistics.median(backwards)


def seconds_of(action: Callable[[], None], device: torch.device) -> float:
    """Seconds until the device has finished what the action gave it: between CUDA events, so that the
    host's launching counts where the device waits for it, but not the wait for the result."""
    if device.type != "cuda":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    action()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def show_measured(rows: list[dict[str, Any]], machine: str, repeat: int) -> None:
    """Prints the rows as a table."""
    table = Table(f"One layer on {machine}, bf16, forward + backward: measured beside counted")
    for row in rows:
        cells = {
            "by": row["kernel"],
            "measured ms": f"{row['measured_milliseconds']:.3g}",
            "counted ms": f"{row['counted_milliseconds']:.3g}",
            "measured / counted": f"{row['measured_over_counted']:.2f}",
            "of floor, measured": f"{row['measured_fraction']:.2g}",
        }
        for column, cell in cells.items():
            table.put(row_name(row), column, cell)
    table.show()
    print(
        f"\nmeasured: median of {repeat} after {WARM_UP} passes to warm up, between CUDA events. counted: by"
        "\n`translution bench kernels`. of floor: the useful FLOPs at the card's rate, over measured time."
    )
