"""What a causal mixer keeps of the tokens it was given, so that the next ones cost little."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Cache(Protocol):
    """Of one layer and one batch of sequences; `Mixer.cache` makes an empty one.

    recomputes   whether nothing is saved inside the mixer: it mixes all tokens again for each new one
    """

    recomputes: bool

    def extend(self, x_BnC: Tensor) -> Tensor:
        """The mixer's outputs [B, n, C] for the next n tokens, equal to those of all tokens at once."""
        ...


class Recomputed:
    """Serves any causal mixer: keeps its inputs, and mixes all of them again. Later tokens are zeros, which
    no token before them sees."""

    recomputes = True

    def __init__(self, mixer: nn.Module, num_tokens: int) -> None:
        self._mixer, self._num_tokens, self._seen = mixer, num_tokens, 0
        self._x_BNC: Tensor | None = None

    def extend(self, x_BnC: Tensor) -> Tensor:
        first, self._seen = self._seen, self._seen + x_BnC.shape[1]
        if self._x_BNC is None:
            self._x_BNC = x_BnC.new_zeros(x_BnC.shape[0], self._num_tokens, x_BnC.shape[2])
        self._x_BNC[:, first : self._seen] = x_BnC
        return self._mixer(self._x_BNC)[:, first : self._seen]


class Rows:
    """Rows of the tokens so far, [m, …], in memory for `num_tokens` of them."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens, self.count = num_tokens, 0
        self._kept: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Rows of the next tokens."""
        if self._kept is None:
            self._kept = rows.new_empty(self._num_tokens, *rows.shape[1:])
        self._kept[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    @property
    def all(self) -> Tensor:
        """Those of the tokens so far; may be written to."""
        return torch.empty(0) if self._kept is None else self._kept[: self.count]
