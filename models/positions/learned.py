"""Learned position embeddings, or no positions at all."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class NoPosition(PositionConfig):
    """Tokens are told apart by nothing but the mixer."""

    kind: Literal["none"] = "none"


class LearnedPosition(PositionConfig):
    """One learned vector per token, added before the first layer."""

    kind: Literal["learned"] = "learned"

    def embedding(self, tokens: TokenGrid, width: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(1, tokens.num_tokens, width))
