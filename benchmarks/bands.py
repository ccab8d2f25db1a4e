"""Draws which bank entry each pair of tokens uses, with and without sharing, and the tiles of one band.

python benchmarks/bands.py docs/bands.png
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from models import OffsetGrid
from models.ops.walk.tiles import Tiling

TOKENS = 160


def draw(path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    for axis, share in zip(axes, ("none", "log", "log"), strict=True):
        grid = OffsetGrid((TOKENS,), causal=True, share=share)
        entries = np.ma.masked_less(grid.table.numpy(), 0)
        axis.imshow(entries, cmap="viridis_r" if share == "none" else "tab20", interpolation="nearest")
        axis.set_xlabel("key")
        axis.set_ylabel("query")
        axis.set_xlim(-0.5, TOKENS - 0.5)
        axis.set_ylim(TOKENS - 0.5, -0.5)
        axis.set_title(f"share: {share}, {grid.num_entries} entries")
    band = max(OffsetGrid((TOKENS,), causal=True, share="log").bands, key=lambda block: block.pairs)
    assert band.queries is not None
    assert band.keys is not None
    assert band.band is not None
    (least, greatest), (top, bottom), (left, right) = band.band[0], band.queries[0], band.keys[0]
    axes[2].set_title(f"the band of offsets {least} to {greatest}")
    axes[2].plot([left - 3, left - 3], [top - 0.5, bottom - 0.5], color="black", lw=3, clip_on=False)
    axes[2].plot([left - 0.5, right - 0.5], [TOKENS + 2] * 2, color="black", lw=3, clip_on=False)
    for tile in Tiling(band, 64, 1 << 14).tiles:
        queries, keys = dict.fromkeys((2,), (0, bottom - top)), dict.fromkeys((2,), (0, right - left))
        queries |= {dim: (start, length) for dim, start, length in tile.queries}
        keys |= {dim: (start, length) for dim, start, length in tile.keys}
        for i in range(tile.repeats):
            (q, _), (k, _) = queries[2], keys[2]
            height, width = tile.length
            corner = (left + k + i * height - 0.5, top + q + i * height - 0.5)
            axes[2].add_patch(Rectangle(corner, width, height, fill=False, ec="black", lw=1.4))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
