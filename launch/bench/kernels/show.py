"""Prints what `translution bench kernels` counted."""

from __future__ import annotations

import json
from typing import Any

from launch.bench.kernels.rows import Size
from trainer.reporting.table import Table


def show(result: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a table and what its columns mean."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    table = Table(f"One layer on {result['card']}, forward + backward, bf16: counted, not measured")
    for row in result["rows"]:
        for column, cell in _cells(row).items():
            table.put(row_name(row), column, cell)
    table.show()
    print(_legend(result))
    for kernel, reason in result["not_counted"].items():
        print(f"not counted: {kernel} ({reason})")


def row_name(row: dict[str, Any]) -> str:
    return f"{row['mixer']} {Size(row['shape'], row['c'], row['batch'], row['share'])}"


def _legend(result: dict[str, Any]) -> str:
    memory, cache = result["bandwidth"] / 1e12, result["cache_bandwidth"] / 1e12
    rate, launch = result["rate"] / 1e12, 1e6 * result["launch_seconds"]
    host, workspace = 1e6 * result["host_launch_seconds"], result["rows"][0]["workspace_bytes"] / 1e9
    return f"""
Counted, not measured. A kernel's time is the longest of: its memory's bytes over {memory:.2f} TB/s, its
cache's over {cache:.1f} TB/s, its FLOPs over {rate:.0f} TFLOP/s, and {launch:.0f} µs.
by: the kernels, the fastest by count. done: FLOPs done over useful ones. floor: ms of the useful FLOPs.
of floor: floor over ms. before: ms (and floor over ms) of loops and grouped products with 64 MiB.
host: launches of {host:.0f} µs each on the host, over ms. peak: memory beside x, the layer's output,
parameters and gradients; beside: what of it is above the workspace of {workspace:.2f} GB, in sizes of x.
attention: ms over self-attention's (and FLOPs over its)."""


def _cells(row: dict[str, Any]) -> dict[str, str]:
    then = row["before"]
    cells = {
        "by": row["kernel"],
        "kernels": f"{row['kernels_forward']:,} + {row['kernels_backward']:,}",
        "GB": f"{row['bytes'] / 1e9:.3g}",
        "done": f"{row['flops_done'] / row['flops_useful']:.2f}",
        "ms": f"{row['milliseconds']:.3g}",
        "floor": f"{row['floor_milliseconds']:.3g}",
        "of floor": f"{row['fraction']:.2g}",
        "before": f"{then['milliseconds']:.3g} ({then['fraction']:.2g})" if then else "–",
        "host": f"{row['launch_share']:.0%}",
        "peak GB": f"{row['peak_extra_bytes'] / 1e9:.2f}",
        "beside": f"{row['extra_in_x_above_workspace']:.1f} x",
    }
    if "times_attention" in row:
        cells["attention"] = f"{row['times_attention']:.1f} ({row['times_attention_flops']:.1f})"
    return cells
