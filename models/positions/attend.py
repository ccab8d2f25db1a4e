"""Softmax attention of all heads: the place where a position encoding may act on logits and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.initial import Draw
from models.ops.device import device_type
from models.ops.recipe import Importance, workspace_bytes

MASK_EPS = 1e-6
HeadInput = Callable[[Tensor], Tensor]
HeadAxes = dict[str, dict[int, Literal["head", "entry"]]]


class Attend(nn.Module):
    """q, k, v[B, H, N, E] → [B, H, N, E]: the softmax over keys of q·k/√E, times v; without positions.

    A position encoding that acts here is a subclass with its parameters. A parameter that all heads share is
    passed through `head_input`, the mixer's hook: there tensor parallelism sums its gradient over the heads.

    plain         whether nothing is added to the logits, so that formulas give the cost
    plain_values  whether nothing is added to the values, so that they may be of any width
    """

    plain: bool = True
    plain_values: bool = True

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, head_input: HeadInput) -> Tensor:
        q_BHNE, k_BHNE = self.rotated(q_BHNE, k_BHNE)
        bias = self.logit_bias(q_BHNE, head_input)
        causal = self.causal and bias is None
        return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=bias, is_causal=causal)

    def rotated(self, q_BHNE: Tensor, k_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are multiplied."""
        return q_BHNE, k_BHNE

    def logit_bias(self, q_BHNE: Tensor, head_input: HeadInput) -> Tensor | None:
        """What is added to the logits, [H, N, N] or [B, H, N, N]."""
        return None

    def logits(self, q_BHIE: Tensor, k_BHNE: Tensor, bias: Tensor | None) -> Tensor:
        """[B, H, I, N] of some queries, without a causal mask, in float32 or more."""
        statistics = torch.promote_types(q_BHIE.dtype, torch.float32)
        logits = (q_BHIE @ k_BHNE.mT).to(statistics) * q_BHIE.shape[-1] ** -0.5
        return logits if bias is None else logits + bias

    def weights(self, q_BHIE: Tensor, k_BHNE: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
        """The weights [B, H, I, N] of the queries `rows`; `bias` is theirs."""
        return self.logits(q_BHIE, k_BHNE, bias).softmax(-1)

    def importance(
        self, q_BHNE: Tensor, k_BHNE: Tensor, head_input: HeadInput, importance: Importance
    ) -> Tensor:
        """How much each head reads each token, [B, H, N]: the class token's weights, or the mean of all
        queries'."""
        q_BHNE, k_BHNE = self.rotated(q_BHNE, k_BHNE)
        bias = self.logit_bias(q_BHNE, head_input)
        if importance == "class":
            first = slice(0, 1)
            own = None if bias is None else bias[..., first, :]
            return self.weights(q_BHNE[:, :, first], k_BHNE, own, first).squeeze(2)

        def read(q_BHIE: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
            return self.weights(q_BHIE, k_BHNE, bias, rows).sum(2)

        return torch.stack(list(_by_rows(read, q_BHNE, bias))).sum(0) / q_BHNE.shape[2]

    def masked(self, q: Tensor, k: Tensor, v: Tensor, kept_BN: Tensor) -> Tensor:
        """[B, H, N, E] where a token with kept = 0 is seen by itself only; without positions.

        The weights are (e_ij·m_ij + ε/N) / (Σ_j e_ij·m_ij + ε), e relative to the greatest of all logits, as
        in the public code of arXiv 2106.02034.
        """
        kept_B11N = kept_BN[:, None, None]

        def attend(q_BHIE: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
            logits, token = self.logits(q_BHIE, k, bias), torch.arange(k.shape[2], device=k.device)
            mask = torch.where(token[rows, None] == token, 1.0, kept_B11N.to(logits.dtype))
            e = (logits - logits.amax(-1, keepdim=True)).exp() * mask
            weights = (e + MASK_EPS / k.shape[2]) / (e.sum(-1, keepdim=True) + MASK_EPS)
            return weights.to(v.dtype) @ v

        return torch.cat(list(_by_rows(attend, q, None)), 2)

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


def _by_rows(
    function: Callable[[Tensor, Tensor | None, slice], Tensor], q_BHNE: Tensor, bias: Tensor | None
) -> Iterator[Tensor]:
    """function(q, bias, rows) for some rows of queries at a time, so that few weights are in memory at once;
    backward computes them again."""
    B, H, N, _ = q_BHNE.shape
    most = max(1, workspace_bytes(None, device_type(q_BHNE.device)) // (8 * B * H * N))
    for start in range(0, N, most):
        rows = slice(start, start + most)
        own = None if bias is None else bias[..., rows, :]
        yield checkpoint(function, q_BHNE[:, :, rows], own, rows, use_reentrant=False)  # pyright: ignore
