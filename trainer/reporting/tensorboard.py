"""TensorBoard scalars and pictures, written by rank 0 only."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from parallel.processes import rank


class Events:
    """Scalars of a run from step `first` on; those that an earlier start wrote from there are purged."""

    def __init__(self, folder: Path, first: int) -> None:
        self._folder = folder
        self._writer = SummaryWriter(folder, purge_step=first) if rank() == 0 else None

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def restart(self, first: int) -> None:
        """Purge the scalars from step `first` on."""
        if self._writer is not None:
            self._writer.close()
            self._writer = SummaryWriter(self._folder, purge_step=first)

    def add_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a PNG file."""
        if self._writer is not None:
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)
