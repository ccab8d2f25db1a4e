"""Softmax attention of all heads: the place where a position encoding may act on logits and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initial import Draw

HeadInput = Callable[[Tensor], Tensor]
HeadAxes = dict[str, dict[int, Literal["head", "entry"]]]


class Attend(nn.Module):
    """q, k, v[B, H, N, E] → [B, H, N, E]: the softmax over keys of q·k/√E, times v; without positions.

    A position encoding that acts here is a subclass with its parameters. A parameter that all heads share is
    passed through `head_input`, the mixer's hook: there tensor parallelism sums its gradient over the heads.

    plain   whether nothing is added to the logits, so that formulas give the cost
    """

    plain: bool = True

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, is_causal=self.causal)

    def placed(self, rows_BHnE: Tensor, first: int) -> Tensor:
        """Queries or keys of the tokens from `first` on, as they are compared."""
        return rows_BHnE

    def extend(self, q_BHnE: Tensor, k_BHME: Tensor, v_BHME: Tensor) -> Tensor:
        """The last n of M tokens of a causal sequence over all of them, after `placed`. A subclass that adds
        something to the logits or values has its own, or no cache."""
        n, M = q_BHnE.shape[2], k_BHME.shape[2]
        seen_nM = torch.ones(n, M, dtype=torch.bool, device=q_BHnE.device).tril(M - n) if n > 1 else None
        return F.scaled_dot_product_attention(q_BHnE, k_BHME, v_BHME, attn_mask=seen_nM)

    @property
    def extends(self) -> bool:
        """Whether `extend` gives what `forward` does."""
        return self.causal and (self.plain or type(self).extend is not Attend.extend)

    def axes(self) -> HeadAxes:
        """See `Mixer.axes`; parameters that all heads share are not declared."""
        return {}

    def draws(self) -> dict[str, Draw]:
        """See `Mixer.draws`."""
        return {}

    def projection_draws(self) -> dict[str, Draw]:
        """Initial values of the mixer's projections q, k, v and out, where not those of a linear layer."""
        return {}

    def no_decay(self) -> set[str]:
        """Parameters of several dimensions that weight decay leaves alone."""
        return set()
