"""Prints what `translution bench step` found."""

from __future__ import annotations

import json
from typing import Any

from trainer.reporting.table import Table


def show(result: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a table and what its columns mean."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    how = "counted, not measured" if result["counted"] else "one thread"
    table = Table(f"A training step on {result['device']}, {how}")
    for row in result["rows"]:
        rest = sorted(row["rest_seconds"].items(), key=lambda each: -each[1])
        cells = {
            "step ms": f"{1e3 * row['step_seconds']:.4g}",
            "operator": f"{1e3 * row['operator_seconds']:.4g}",
            "dense": f"{1e3 * row['dense_seconds']:.4g}",
            "over both": f"{row['over_both']:.3f}",
        }
        if not result["counted"]:
            low, high = row["over_both_range"]
            cells |= {"range": f"{low:.2f}–{high:.2f}", "target": f"≤ {result['target']}"}
        cells["rest ms"] = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in rest[:4])
        for column, cell in cells.items():
            table.put(f"{row['name']}: {row['shape']}", column, cell)
    table.show()
    print(
        "\noperator: its passes over the pairs; dense: all other matrix products; each alone, same tensors."
        "\nover both: the step over operator + dense. rest: what the step does beside them, most first"
    )
    if result["counted"]:
        print("\nby torch's operators. A kernel takes as long as its launch from the host at least.")
    else:
        print(
            f"(update: clipping and AdamW). Median and range of {result['repeat']} steps, CPU time; the "
            "parts are timed before and after each."
        )
