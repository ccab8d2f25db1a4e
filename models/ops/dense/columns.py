"""Reads and sums strips of channel-major tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.offsets import OffsetGrid
from models.ops.walk.rows import Side, Strip
from models.ops.walk.stage import Scratch


class Columns:
    """Reads strips of channel-major tensors [C, N, B] as [C, n·B], or sums into them.

    A strip of a sequence is a view; others are copied, or summed in a buffer that is added when the next
    strip begins, or by `finish`.
    """

    def __init__(
        self, tensors: Mapping[int, Tensor], grid: OffsetGrid, scratch: Scratch, sums: bool = False
    ) -> None:
        self._tensors, self._grid, self._scratch, self._sums = tensors, grid, scratch, sums
        self._held: dict[tuple[int, Side], tuple[Strip, Tensor, Tensor | None]] = {}

    def of(self, number: int, side: Side, strip: Strip) -> Tensor:
        held = self._held.get((number, side))
        if held is None or held[0] != strip:
            self._add_back(number, side)
            view = self._view(number, strip)
            if _flattens(view):
                held = strip, view.flatten(1), None
            else:
                name = ("sums" if self._sums else "columns", number, side)
                buffer = self._scratch(name, tuple(view.shape), view.dtype)
                buffer = buffer.zero_() if self._sums else buffer.copy_(view)
                held = strip, buffer.flatten(1), buffer
            self._held[number, side] = held
        return held[1]

    def finish(self) -> None:
        for number, side in list(self._held):
            self._add_back(number, side)

    def _add_back(self, number: int, side: Side) -> None:
        held = self._held.pop((number, side), None)
        if self._sums and held is not None and held[2] is not None:
            self._view(number, held[0]).add_(held[2])

    def _view(self, number: int, strip: Strip) -> Tensor:
        t, special = self._tensors[number], int(self._grid.class_token)
        if not strip.corner:
            return t[:, :1] if t.shape[1] > 1 else t
        whole = t[:, special:].unflatten(1, self._grid.shape)
        for dim, (start, length) in enumerate(zip(strip.corner, strip.extent, strict=True), 1):
            whole = whole.narrow(dim, start, length)
        return whole


def _flattens(t: Tensor) -> bool:
    """Whether the dimensions after the first are one run of memory."""
    strides, sizes = t.stride(), t.shape
    return all(strides[d] == strides[d + 1] * sizes[d + 1] for d in range(1, t.dim() - 1))
