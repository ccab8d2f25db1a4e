"""Softmax attention of all heads: the place where a position encoding may act on logits and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.initial import Draw

HeadInput = Callable[[Tensor], Tensor]


class Attend(nn.Module):
    """q, k, v[B, H, N, E] → [B, H, N, E]: the softmax over keys of q·k/√E, times v; without positions.

    A position encoding that acts here is a subclass with its parameters. A parameter that all heads share is
    passed through `head_input`, the mixer's hook: there tensor parallelism sums its gradient over the heads.
    """

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, is_causal=self.causal)

    def axes(self) -> dict[str, dict[int, Literal["head", "entry"]]]:
        """See `Mixer.axes`; parameters that all heads share are not declared."""
        return {}

    def draws(self) -> dict[str, Draw]:
        """See `Mixer.draws`."""
        return {}
