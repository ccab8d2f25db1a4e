"""What Translution keeps of the tokens so far."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.decoding.offset_rows import OffsetRows
from models.offsets import OffsetGrid
from models.ops.streamed import streamed
from models.ops.walk.schedule import whole_schedule

if TYPE_CHECKING:
    from models.mixers.translution import Translution


class OffsetCache:
    """Of a causal mixer; see offset_rows.py. The first tokens, all given at once, are mixed by `streamed`."""

    recomputes = False

    def __init__(self, mixer: Translution) -> None:
        self._mixer, self._seen = mixer, 0
        self._banks = [mixer.get_parameter(f"{name}_bank") for name in mixer.relative]
        self._rows = OffsetRows(mixer.recipe, mixer.grid, self._banks)

    def extend(self, x_BnC: Tensor) -> Tensor:
        first, self._seen = self._seen, self._seen + x_BnC.shape[1]
        mixer, x_nBC = self._mixer, x_BnC.transpose(0, 1).contiguous()
        sources = mixer._sources(x_nBC, first)
        if first:
            each = zip(*(source.split(1) for source in sources), strict=True)
            return torch.cat([mixer._joined(self._rows.add(list(token))) for token in each], 1)
        self._rows.fill(sources)
        grid = OffsetGrid((self._seen,), causal=True, share=mixer.grid.share)
        banks = [bank[: grid.num_entries] for bank in self._banks]
        recipe = replace(mixer.recipe, keep=False, compiled=False, kernel="auto")  # once, for this length
        return mixer._joined(streamed(recipe, whole_schedule(grid), sources, banks))
