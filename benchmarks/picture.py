"""Draws the README's picture from a finished run of the main job.

python benchmarks/picture.py RUN_DIR docs/moving_digits.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import Tensor

from trainer.config.run import RunConfig, load_config

COLUMNS = {"Static→Static": ("static", "static"), "Static→Dynamic": ("static", "dynamic")}
COLUMNS |= {"Dynamic→Dynamic": ("dynamic", "dynamic")}
ROWS = {"translution": ("Translution", "#1f6f8b"), "attention": ("Self-attention", "#e6a15c")}


def accuracies(run_dir: Path, mixer: str) -> list[float]:
    """Test accuracy in per cent of each column."""
    found = []
    for trained, tested in COLUMNS.values():
        result = run_dir / f"kind={mixer},train={trained}" / "result.json"
        found.append(json.loads(result.read_text())["evaluation"][tested]["accuracy"])
    return found


def main(run_dir: Path, out: Path) -> None:
    config = load_config(run_dir / "kind=translution,train=dynamic/config.yaml", [])
    figure = plt.figure(figsize=(9, 3.2), dpi=120)
    grid = figure.add_gridspec(2, 5, width_ratios=[1, 1, 1, 0.35, 4])
    for row, name in enumerate(("static", "dynamic")):
        images = load_images(config, name)
        for column in range(3):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(images[column], cmap="gray_r")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 1:
                axis.set_title(f"{name.capitalize()} MNIST", fontsize=9)
    axis = figure.add_subplot(grid[:, 4])
    for number, (mixer, (title, colour)) in enumerate(ROWS.items()):
        places = [place + (number - 0.5) * 0.38 for place in range(len(COLUMNS))]
        bars = axis.bar(places, accuracies(run_dir, mixer), 0.36, label=title, color=colour)
        axis.bar_label(bars, fmt="%.0f", fontsize=9)
    axis.set_xticks(range(len(COLUMNS)), [name.replace("→", "→\n") for name in COLUMNS], fontsize=9)
    axis.set_ylabel("test accuracy, %")
    axis.set_ylim(0, 105)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    axis.set_title(f"after {config.train.steps} steps", fontsize=9)
    figure.tight_layout()
    figure.savefig(out)


def load_images(config: RunConfig, name: str) -> Tensor:
    """A few test images [3, 84, 84] of the static or the dynamic set."""
    source = config.build_source()
    batch = next(source.evaluation_batches(name, 3))
    return batch.inputs[:, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
