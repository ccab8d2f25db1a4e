"""Draws what the shift heads of a structure embedding have learned: a picture per head, a row per layer.

translution export RUN_DIR --out weights.safetensors
python benchmarks/shifts.py weights.safetensors FILE.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from safetensors.torch import load_file
from torch import Tensor


def mixtures(path: Path) -> dict[str, Tensor]:
    """π[heads, …] over offsets by layer, of a file of weights; raises SystemExit where there are none."""
    found = {name: t for name, t in load_file(path).items() if name.endswith("mixer.mixture")}
    if not found:
        raise SystemExit(f"{path}: holds no shift heads of a mixer of kind structure")
    return {
        name.removesuffix(".mixer.mixture"): t.float().flatten(1).softmax(1).view_as(t)
        for name, t in found.items()
    }


def draw(layers: dict[str, Tensor], out: Path) -> None:
    columns = max(map(len, layers.values()))
    size = (1.8 * columns + 0.5, 1.8 * len(layers) + 0.5)
    figure, axes = plt.subplots(len(layers), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (name, pi) in zip(axes, layers.items(), strict=True):
        for head, axis in enumerate(row):
            axis.set_visible(head < len(pi))
            if head >= len(pi):
                continue
            if pi.dim() == 3:
                rows, cols = (side // 2 for side in pi.shape[1:])
                axis.imshow(
                    pi[head], cmap="gray_r", extent=(-cols - 0.5, cols + 0.5, rows + 0.5, -rows - 0.5)
                )
            else:
                axis.bar(range(pi[head].numel()), pi[head].flatten())
            axis.set_title(f"{name}, head {head}", fontsize=8)
            axis.tick_params(labelsize=7)
    figure.supxlabel("offset δ = query − key", fontsize=9)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(mixtures(Path(sys.argv[1])), Path(sys.argv[2]))
