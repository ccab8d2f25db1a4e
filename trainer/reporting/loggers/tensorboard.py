"""TensorBoard's scalars, pictures and hyper-parameters."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Events:
    """Scalars of a run from step `first` on; those that an earlier start wrote from there are purged."""

    def __init__(self, folder: Path, first: int) -> None:
        self._folder = folder
        self._writer = SummaryWriter(folder, purge_step=first)

    def close(self) -> None:
        self._writer.close()

    def restart(self, first: int) -> None:
        """Purge the scalars from step `first` on."""
        self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=first)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def add_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a PNG file."""
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")


def write_hparams(folder: Path, values: dict[str, str], result: dict[str, Any]) -> None:
    """Add to a net's events what its study sets, and its final metrics, for the tab of hyper-parameters."""
    metrics = {
        f"{name}/{metric}": value
        for name, each in result["evaluation"].items()
        for metric, value in each.items()
    }
    writer = SummaryWriter(folder)
    for summary in hparams(values, metrics):
        writer._get_file_writer().add_summary(summary)
    for name, value in metrics.items():
        writer.add_scalar(name, value, result["step"])
    writer.close()
