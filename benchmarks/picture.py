"""Draws the README's picture from a finished run of configs/debug.yaml: its images and its result table.

python benchmarks/picture.py RUN_DIR docs/moving_digits.png
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import Tensor

from trainer.config.run import RunConfig, load_config

COLOURS = ("#1f6f8b", "#e6a15c")


def read_table(path: Path) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """The columns that hold an accuracy in results.md, and by row title mean and deviation in per cent."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    places = [place for place, title in enumerate(header) if "→" in title]
    numbers = {row[0]: [_number(row[place]) for place in places] for row in rows}
    return [header[place] for place in places], numbers


def _number(cell: str) -> tuple[float, float]:
    found = re.match(r"([\d.]+)(?: ± ([\d.]+))?", cell)
    return (float(found[1]), float(found[2] or 0)) if found else (float("nan"), 0.0)


def load_images(config: RunConfig, name: str) -> Tensor:
    """Three test images [3, 84, 84] of the static or the dynamic set."""
    batch = next(config.build_source().evaluation_batches(name, 3))
    return batch.inputs[:, 0]


def main(run_dir: Path, out: Path) -> None:
    config = load_config(run_dir / "config.yaml", [])
    columns, accuracies = read_table(run_dir / "results.md")
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
    for number, (title, values) in enumerate(accuracies.items()):
        places = [place + (number - 0.5) * 0.38 for place in range(len(columns))]
        means, deviations = zip(*values, strict=True)
        axis.bar(places, means, 0.36, label=title, color=COLOURS[number])
        for place, mean, deviation in zip(places, means, deviations, strict=True):
            axis.text(place, mean + deviation + 2, f"{mean:.0f}", ha="center", fontsize=9)
        axis.errorbar(places, means, deviations, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axis.set_xticks(range(len(columns)), [title.replace("→", "→\n") for title in columns], fontsize=9)
    axis.set_ylabel("test accuracy, %")
    axis.set_ylim(0, 105)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    axis.set_title(f"after {config.train.steps} steps", fontsize=9)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
