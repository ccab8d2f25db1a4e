"""Token decoupling and merging: importance and diversity together (after arXiv 2211.11315)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.reducers.clusters import density_peaks, merged
from models.reducers.interface import KeepConfig, PatchReducer, ranking, take
from models.tokens import TokenGrid

LEAST_WEIGHT = 1e-30  # importance that has underflowed weighs all tokens alike


class Decouple(PatchReducer):
    """The `left` most important tokens, the most similar pairs of them merged, and clusters of all others.

    M = min(share·left, left/2, N − left) pairs become one token each, at the place of the more important one,
    and the M places that this frees are taken by M clusters of the other tokens around density peaks: `left`
    tokens come out, attentive ones by falling importance, then clusters by falling score. Merged tokens are
    weighted by importance, through which the gradient flows; the choice carries none.

    No code is public; this is a reconstruction from the abstract, a figure and the training logs.
    """

    def __init__(self, dim: int, tokens: TokenGrid, left: int, cluster_share: float, neighbours: int) -> None:
        super().__init__(dim, tokens, ranks=True)
        self.left, self.neighbours = left, neighbours
        self.merges = min(round(cluster_share * left), left // 2, self.patches - left)

    def reduce(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        assert importance_BN is not None
        A, M = self.left, self.merges
        attentive_BA, others_BN = ranking(importance_BN).tensor_split([A], 1)
        if not M:
            self.tell(attentive_BA)
            return take(x_BNC, attentive_BA)
        weight_BN = importance_BN.clamp_min(LEAST_WEIGHT)
        x_BAC, weight_BA = take(x_BNC, attentive_BA), weight_BN.gather(1, attentive_BA)
        pairs_BM2 = most_similar_pairs(x_BAC, M)
        source_BK = _places(pairs_BM2, A)
        paired_BMC = _paired(x_BAC, weight_BA, pairs_BM2)
        x_BKC = take(torch.cat((x_BAC, paired_BMC), 1), source_BK)
        x_others = take(x_BNC, others_BN)
        cluster_BN = density_peaks(x_others, M, self.neighbours)
        if self.watch is not None:
            self.watch(self._groups(attentive_BA, others_BN, pairs_BM2, source_BK, cluster_BN))
        return torch.cat((x_BKC, merged(x_others, weight_BN.gather(1, others_BN), cluster_BN, M)), 1)

    def _groups(self, attentive: Tensor, others: Tensor, pairs: Tensor, source: Tensor, cluster: Tensor):
        """See `Reducer.watch`."""
        A, M = self.left, self.merges
        position = torch.arange(A + M, device=source.device).expand(len(source), -1)
        place_of = torch.zeros_like(position).scatter(1, source, position[:, : A - M])
        of_pair = place_of[:, A:]
        group_BA = place_of[:, :A].scatter(1, pairs[..., 0], of_pair).scatter(1, pairs[..., 1], of_pair)
        both = torch.cat((group_BA, cluster + A - M), 1)
        return torch.empty_like(both).scatter(1, torch.cat((attentive, others), 1), both)


@torch.no_grad()
def most_similar_pairs(x_BAC: Tensor, count: int) -> Tensor:
    """[B, M, 2]: M times the pair of greatest cosine similarity among tokens that are in none yet; of equal
    ones the first in row order. The first member stands before the second.
    """
    A = x_BAC.shape[1]
    unit = F.normalize(x_BAC.to(torch.promote_types(x_BAC.dtype, torch.float32)), dim=-1)
    below = torch.ones(A, A, dtype=torch.bool, device=x_BAC.device).tril()
    similarity_BAA = (unit @ unit.mT).masked_fill_(below, -torch.inf)
    taken_BA = torch.zeros(x_BAC.shape[:2], dtype=torch.bool, device=x_BAC.device)
    pairs = []
    for _ in range(count):
        best_B = similarity_BAA.flatten(1).argmax(1)
        pairs.append(torch.stack((best_B // A, best_B % A), 1))
        taken_BA = taken_BA.scatter(1, pairs[-1], True)
        similarity_BAA.masked_fill_(taken_BA[:, :, None] | taken_BA[:, None, :], -torch.inf)
    return torch.stack(pairs, 1)


def _paired(x_BAC: Tensor, weight_BA: Tensor, pairs_BM2: Tensor) -> Tensor:
    """The weighted mean of each pair, [B, M, C]."""
    first, second = pairs_BM2.unbind(2)
    own, other = (weight_BA.gather(1, index).unsqueeze(-1) for index in (first, second))
    share = (own / (own + other)).to(x_BAC.dtype)
    return share * take(x_BAC, first) + (1 - share) * take(x_BAC, second)


def _places(pairs_BM2: Tensor, A: int) -> Tensor:
    """[B, A − M]: which of A tokens and M pairs stands at each place, a pair at that of its first member."""
    B, M, _ = pairs_BM2.shape
    index = torch.arange(A + M, device=pairs_BM2.device).expand(B, -1)
    source_BA = index[:, :A].scatter(1, pairs_BM2[..., 0], index[:, A:])
    gone_BA = torch.zeros_like(source_BA).scatter(1, pairs_BM2[..., 1], 1)
    kept_BK = gone_BA.sort(dim=1, stable=True).indices[:, : A - M]
    return source_BA.gather(1, kept_BK)


class DecoupleConfig(KeepConfig):
    """Attentive tokens, the most similar pairs of them merged, and clusters of the others.

    cluster_share   of the tokens that are left, how many are clusters
    neighbours      with itself, of a token's density
    """

    ranks: ClassVar[bool] = True

    kind: Literal["decouple"] = "decouple"
    cluster_share: float = Field(default=0.4, ge=0, le=1)
    neighbours: int = Field(default=5, ge=1)

    def build(self, dim: int, tokens: TokenGrid) -> Decouple:
        left = self.left(tokens)
        return Decouple(dim, tokens, left, self.cluster_share, self.neighbours)
