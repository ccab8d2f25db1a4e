"""`translution bench op --shapes shared|alpha`: layers of Translution against self-attention.

Each repetition times every layer once, forward and backward with its projections, by CPU time on one thread;
a ratio is between the times of one repetition. The table shows medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from launch.bench.peak_memory import peak_memory
from models import Attention, TokenGrid, Translution
from models.mixers.cost import Load
from models.mixers.interface import Mixer
from models.ops.walk.schedule import Schedule
from parallel.errors import UserError
from trainer.reporting.table import Table

HEAD_DIM = {192: 64, 48: 48}
POLICIES = ("recompute", "keep")


class Case(NamedTuple):
    """A layer; targets in times of self-attention, by policy. `by_offset`: also evaluate shared entries
    offset by offset, and how many times faster the layer is to be."""

    tokens: TokenGrid
    batch: int
    share: str = "none"
    rank: int | None = None
    width: int = 192
    targets: tuple[float | None, float | None] = (None, None)
    by_offset: bool = False
    faster: float | None = None

    @property
    def shape(self) -> str:
        assert self.tokens.shape is not None
        causal = " causal" if self.tokens.causal else ""
        return "×".join(map(str, self.tokens.shape)) + f"{causal}, B={self.batch}, C={self.width}"

    @property
    def variant(self) -> str:
        return self.share if self.rank is None else f"α of rank {self.rank}"


def _square(side: int) -> TokenGrid:
    return TokenGrid((side, side))


def _sequence(length: int) -> TokenGrid:
    return TokenGrid((length,), causal=True)


GROUPS = {
    "shared": (
        Case(_square(14), 8, "log", targets=(33, None), by_offset=True),
        Case(_square(14), 8, "clip(2)", targets=(14.5, None)),
        Case(_square(14), 8, "clip(1)", targets=(6.8, None)),
        Case(_square(28), 2, "log", by_offset=True, faster=7.5),
        Case(_sequence(1024), 2, "log", targets=(4.5, 4.0), by_offset=True, faster=30),
        Case(_sequence(1024), 2, "clip(3)", targets=(2.5, None)),
        Case(_sequence(4096), 1, "log"),
        Case(_sequence(8192), 1, "log"),
    ),
    "alpha": (
        Case(_square(14), 8, rank=8, targets=(8, 8)),
        Case(_sequence(160), 8, rank=8, targets=(4, 4)),
        Case(_square(7), 64, rank=8, width=48, targets=(10, 10)),
    ),
}


def bench_layers(group: str, repeat: int) -> dict[str, Any]:
    """Measure the layers of a group; raises UserError for an unknown one."""
    if group not in GROUPS:
        raise UserError(f"--shapes {group}: one of {', '.join(GROUPS)} is needed")
    torch.set_num_threads(1)
    rows = []
    for case in GROUPS[group]:
        print(f"measuring {case.shape}, {case.variant} …", file=sys.stderr, flush=True)
        rows += _measure(case, repeat)
    return {
        "device": f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "torch": torch.__version__,
        "group": group,
        "repeat": repeat,
        "rows": rows,
    }


def _measure(case: Case, repeat: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    heads, head_dim = case.width // HEAD_DIM[case.width], HEAD_DIM[case.width]
    grid = case.tokens.offsets(case.share)
    x = torch.randn(case.batch, grid.num_tokens, case.width, requires_grad=True)
    attention = Attention(case.width, case.tokens, heads, head_dim)
    layers = {
        policy: Translution(case.width, grid, heads, head_dim, rank=case.rank, memory=policy)
        for policy in POLICIES
    }
    for layer in (attention, *layers.values()):
        _seconds(layer, x)  # builds tables
    times: dict[str, list[float]] = {name: [] for name in ("attention", *POLICIES)}
    for _ in range(repeat):
        for name, layer in (("attention", attention), *layers.items()):
            times[name].append(_seconds(layer, x))
    by_offset = _by_offset(layers["recompute"], x) if case.by_offset else None
    ratios = {p: [a / b for a, b in zip(times[p], times["attention"], strict=True)] for p in POLICIES}
    return [
        {
            "shape": case.shape,
            "variant": case.variant,
            "policy": policy,
            "entries": grid.num_entries,
            "parameters": sum(p.numel() for p in layer.parameters()),
            "rows": sum(layer.schedule.rows),
            "pairs": grid.num_pairs,
            "milliseconds": 1e3 * statistics.median(times[policy]),
            "attention_milliseconds": 1e3 * statistics.median(times["attention"]),
            "over_attention": statistics.median(ratios[policy]),
            "over_attention_range": [min(ratios[policy]), max(ratios[policy])],
            "over_attention_target": target,
            "flops_over_attention": _flops(layer, case.batch) / _flops(attention, case.batch),
            "peak_bytes": _peak(layer, x),
            "x_bytes": x.nbytes,
            "planned_bytes": _planned(layer, case.batch),
            "by_offset": by_offset and by_offset | {"faster": by_offset["seconds"] / min(times[policy])},
            "faster_target": case.faster,
        }
        for (policy, layer), target in zip(layers.items(), case.targets, strict=True)
    ]


def _seconds(layer: nn.Module, x: Tensor) -> float:
    """CPU time of forward and backward, which other processes do not affect."""
    start = time.process_time()
    _step(layer, x)
    return time.process_time() - start


def _step(layer: nn.Module, x: Tensor) -> None:
    x.grad = None
    layer.zero_grad()
    layer(x).sum().backward()


def _flops(layer: Mixer, batch: int) -> int:
    """Of training, with those of recomputation."""
    cost = layer.cost(Load(batch))
    return 3 * cost.forward + cost.recomputed


def _planned(layer: Mixer, batch: int) -> int:
    cost = layer.cost(Load(batch, cpu=True))
    return cost.saved + cost.work


def _peak(layer: nn.Module, x: Tensor) -> int:
    """Peak bytes of a step beyond parameters, their gradients and x; its gradient is counted."""
    _step(layer, x)
    layer.zero_grad()
    x.grad = None
    return peak_memory(lambda: _step(layer, x), x.device) - sum(p.nbytes for p in layer.parameters())


def _by_offset(layer: Translution, x: Tensor) -> dict[str, float]:
    """Time and memory of the same layer if every offset is multiplied by itself."""
    whole, layer.schedule = layer.schedule, Schedule(layer.grid)
    try:
        _seconds(layer, x[:1].detach().requires_grad_())  # builds tables
        return {"seconds": _seconds(layer, x), "peak_bytes": _peak(layer, x)}
    finally:
        layer.schedule = whole


def show_layers(result: dict[str, Any], as_json: bool) -> None:
    """Print what `bench_layers` measured: one JSON object, or a table and what its columns mean."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    table = Table(f"Layers against self-attention, fp32, one thread of {result['device']}")
    for row in result["rows"]:
        title, target, old = f"{row['shape']}, {row['variant']}, {row['policy']}", None, row["by_offset"]
        target = row["over_attention_target"]
        low, high = row["over_attention_range"]
        cells = {
            "entries": f"{row['entries']:,}",
            "parameters": f"{row['parameters'] / 1e6:.2f} M",
            "rows": f"{row['rows']:,}",
            "pairs": f"{row['pairs']:,}",
            "ms": f"{row['milliseconds']:.0f}",
            "× attention": f"{row['over_attention']:.2f}",
            "range": f"{low:.2f}–{high:.2f}",
            "target": f"≤ {target:g}" if target else "",
            "FLOPs": f"{row['flops_over_attention']:.1f}",
            "× faster": f"{old['faster']:.1f}" if old else "",
            "memory in x": f"{row['peak_bytes'] / row['x_bytes']:.1f}",
            "planned": f"{row['planned_bytes'] / row['x_bytes']:.1f}",
            "by offset": f"{old['peak_bytes'] / row['x_bytes']:.1f}" if old else "",
        }
        for column, cell in cells.items():
            table.put(title, column, cell)
    table.show()
    print(
        f"\nms: forward + backward with projections, median of {result['repeat']} repetitions in CPU time."
        "\nrows: tokens multiplied by a bank entry, once for queries and once for keys; pairs: of tokens."
        "\n× attention: over the time of self-attention in the same repetition; FLOPs: the ratio by count."
        "\n× faster, by offset: than the same layer if every offset is multiplied by itself; its memory."
        "\nmemory: peak beyond parameters and their gradients, in sizes of x; planned: as the planner counts."
    )
