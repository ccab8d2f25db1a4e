"""`translution bench mixers`: layers of every mixer and position beside plain self-attention.

Each repetition times every layer once, forward and backward with its projections, by CPU time on one thread;
a ratio is between the times of one repetition. The table shows medians.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from launch.bench.peak_memory import peak_memory
from models.mixers.interface import Mixer
from models.positions.learned import NoPosition
from models.stages import AnyMixer, AnyPosition
from models.tokens import TokenGrid
from parallel.errors import UserError
from trainer.reporting.table import Table

WIDTH, HEADS, HEAD_DIM = 192, 3, 64
ATTENTION = {"kind": "attention", "heads": HEADS, "head_dim": HEAD_DIM}
IMAGE, TEXT = TokenGrid((14, 14)), TokenGrid((196,), causal=True)
LONG_IMAGE, LONG_TEXT = TokenGrid((64, 64)), TokenGrid((4096,), causal=True)


class Row(NamedTuple):
    """A layer by its sections of a config; `long`: measured at 4,096 tokens too, where it must be faster
    than attention; `latents` beside the tokens."""

    mixer: dict[str, Any] = ATTENTION
    position: str | dict[str, Any] = "none"
    causal: bool = False
    long: bool = False
    latents: int = 0


ROWS: dict[str, Row] = {
    "rope": Row(position="rope"),
    "botnet": Row(position="botnet"),
    "swin": Row(position="swin"),
    "gpsa": Row(position="gpsa"),
    "structure": Row({"kind": "structure", "attention_heads": 1, "shift_heads": 2, "head_dim": HEAD_DIM}),
    "structure, shifts": Row(
        {"kind": "structure", "attention_heads": 0, "shift_heads": 3, "head_dim": HEAD_DIM}, long=True
    ),
    "rope, causal": Row(position="rope", causal=True),
    "swin, causal": Row(position="swin", causal=True),
    "shaw, causal": Row(position="shaw", causal=True),
    "tssa": Row({"kind": "tssa", "heads": 4}, long=True),
    "tssa, causal": Row({"kind": "tssa", "heads": 4}, causal=True, long=True),
    "xca": Row({"kind": "xca", "heads": 4}, long=True),
    "bixt": Row({"kind": "bixt", "heads": 6}, latents=64),
    "combiner": Row({"kind": "combiner", "segment": 14}),
    "combiner, causal": Row({"kind": "combiner", "segment": 14}, causal=True),
    "combiner axial, causal": Row({"kind": "combiner", "form": "axial", "segment": 14}, causal=True),
    "combiner mixture, causal": Row({"kind": "combiner", "form": "mixture", "segment": 14}, causal=True),
    "rwkv, causal": Row({"kind": "rwkv"}, causal=True, long=True),
}


class Case(NamedTuple):
    """Layers over the same input; the first is attention."""

    title: str
    tokens: TokenGrid
    batch: int
    rows: dict[str, Row]


def bench_mixers(names: list[str], repeat: int, lengths: list[int] | None = None) -> dict[str, Any]:
    """Measure the named rows, or all if none is named; raises UserError for an unknown one.

    With `lengths`, one sample of so many tokens each in place of the usual shapes.
    """
    for name in names:
        if name not in ROWS:
            raise UserError(f"--mixer {name}: one of {', '.join(ROWS)} is needed")
    chosen = {name: row for name, row in ROWS.items() if not names or name in names}
    torch.set_num_threads(1)
    still = {name: row for name, row in chosen.items() if not row.causal}
    causal = {name: row for name, row in chosen.items() if row.causal}
    cases = [
        case
        for N in lengths or ()
        for case in (
            Case(f"{N} tokens", TokenGrid(_grid(N)), 1, still),
            Case(f"{N} causal", TokenGrid((N,), causal=True), 1, causal),
        )
    ] or [
        Case("14×14, B=8", IMAGE, 8, still),
        Case("196 causal, B=8", TEXT, 8, causal),
        Case("64×64, B=1", LONG_IMAGE, 1, {name: row for name, row in still.items() if row.long}),
        Case("4096 causal, B=1", LONG_TEXT, 1, {name: row for name, row in causal.items() if row.long}),
    ]
    return {
        "device": f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "torch": torch.__version__,
        "width": WIDTH,
        "repeat": repeat,
        "rows": [row for case in cases if case.rows for row in _measure(case, repeat)],
    }


def layer_of(row: Row, tokens: TokenGrid) -> Mixer:
    """The layer that a row describes."""
    mixer = TypeAdapter(AnyMixer).validate_python(row.mixer)
    position = TypeAdapter(AnyPosition).validate_python(row.position)
    tokens = replace(tokens, latents=row.latents)
    if reason := mixer.refuses_tokens(tokens):
        raise UserError(f"mixer {mixer.kind} {reason}")
    return mixer.build(WIDTH, tokens, position if position.inside_mixer else NoPosition())


def _grid(tokens: int) -> tuple[int, int]:
    """The grid of so many tokens that is nearest a square."""
    rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows


def _measure(case: Case, repeat: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    layers = {"attention": layer_of(Row(), case.tokens)}
    layers |= {name: layer_of(row, case.tokens) for name, row in case.rows.items()}
    inputs = {
        name: torch.randn(case.batch, layer.num_tokens, WIDTH, requires_grad=True)
        for name, layer in layers.items()
    }
    for name, layer in layers.items():
        print(f"measuring {case.title}, {name} …", file=sys.stderr, flush=True)
        _step(layer, inputs[name])  # builds tables
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(repeat):
        for name, layer in layers.items():
            start = time.process_time()
            _step(layer, inputs[name])
            times[name].append(time.process_time() - start)
    ratios = {n: [a / b for a, b in zip(t, times["attention"], strict=True)] for n, t in times.items()}
    return [
        {
            "shape": case.title,
            "name": name,
            "parameters": sum(p.numel() for p in layer.parameters()),
            "milliseconds": 1e3 * statistics.median(times[name]),
            "over_attention": statistics.median(ratios[name]),
            "over_attention_range": [min(ratios[name]), max(ratios[name])],
            "peak_bytes": _peak(layer, inputs[name]),
            "x_bytes": inputs[name].nbytes,
        }
        for name, layer in layers.items()
    ]


def _step(layer: nn.Module, x: Tensor) -> None:
    x.grad = None
    layer.zero_grad()
    layer(x).sum().backward()


def _peak(layer: nn.Module, x: Tensor) -> int:
    """Peak bytes of a step beyond parameters, their gradients and x; its gradient is counted."""
    layer.zero_grad()
    x.grad = None
    return peak_memory(lambda: _step(layer, x), x.device) - sum(p.nbytes for p in layer.parameters())


def show_mixers(result: dict[str, Any], as_json: bool) -> None:
    """Print what `bench_mixers` measured: one JSON object, or a table and what its columns mean."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    table = Table(f"Layers of C={result['width']} beside self-attention, one thread of {result['device']}")
    for row in result["rows"]:
        low, high = row["over_attention_range"]
        cells = {
            "parameters": f"{row['parameters']:,}",
            "ms": f"{row['milliseconds']:.1f}",
            "× attention": f"{row['over_attention']:.2f}",
            "range": f"{low:.2f}–{high:.2f}",
            "memory MB": f"{row['peak_bytes'] / 1e6:.1f}",
            "in x": f"{row['peak_bytes'] / row['x_bytes']:.1f}",
        }
        for column, cell in cells.items():
            table.put(f"{row['shape']}, {row['name']}", column, cell)
    table.show()
    print(
        f"\nms: forward + backward with projections, fp32, median of {result['repeat']} in CPU time."
        "\n× attention: over the time of self-attention on the same tokens in the same repetition."
        "\nmemory: peak beyond parameters and their gradients, and in sizes of x."
    )
