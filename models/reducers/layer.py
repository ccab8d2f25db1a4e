"""Layers of nets that reduce their tokens."""

from __future__ import annotations

from torch import Tensor

from models.parts.block import Block
from models.reducers.dynamic import Masked


class ReducingLayer(Block):
    """A layer (models/transformer.py) that also reduces its tokens, by their importance where the reducer
    ranks them: x[B, N, C] → [B, M, C].

    The reducer acts between mixer and feed-forward, which then has the M tokens only, or after both.
    """

    def forward(self, x_BNC: Tensor) -> Tensor:
        mixed, importance = self.mixer(self.mixer_norm(x_BNC)), None
        if self.mixer.importance is not None:
            mixed, importance = mixed
        x_BNC = x_BNC + self.dropout(self.mixer_scale(mixed))
        if self.local is not None:
            x_BNC = x_BNC + self.dropout(self.local_scale(self.local(self.local_norm(x_BNC))))
        if self.reduces_inside:
            x_BNC = self._reduced(x_BNC, importance)
        x_BNC = x_BNC + self.dropout(self.mlp_scale(self.mlp(self.mlp_norm(x_BNC))))
        return x_BNC if self.reduces_inside else self._reduced(x_BNC, importance)

    def _reduced(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        assert self.reduce is not None
        x_BMC = self.reduce(x_BNC) if importance_BN is None else self.reduce(x_BNC, importance_BN)
        if x_BMC.shape[1] != self.tokens_after:
            name, said = type(self.reduce).__name__, self.tokens_after
            raise ValueError(f"{name} gives {x_BMC.shape[1]} tokens where its config says {said}")
        return x_BMC


class MaskedLayer(Block):
    """A layer of a net that drops tokens dynamically (dynamic.py).

    In training, from the first decision on, x comes with kept[B, N] and the penalty so far, and goes on with
    them; its mixer leaves out the tokens that are not kept.
    """

    def forward(
        self, x_BNC: Tensor, kept_BN: Tensor | None = None, penalty: Tensor | None = None
    ) -> Tensor | Masked:
        normed = self.mixer_norm(x_BNC)
        mixed = self.mixer(normed) if kept_BN is None else self.mixer(normed, kept_BN)
        x_BNC = x_BNC + self.dropout(self.mixer_scale(mixed))
        x_BNC = x_BNC + self.dropout(self.mlp_scale(self.mlp(self.mlp_norm(x_BNC))))
        stream = x_BNC if kept_BN is None or penalty is None else (x_BNC, kept_BN, penalty)
        if self.reduce is None:
            return stream
        return self.reduce(*stream) if isinstance(stream, tuple) else self.reduce(stream)
