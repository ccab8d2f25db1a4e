"""Clusters of tokens around density peaks, and the reducer that merges each into one token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.ops.device import device_type
from models.ops.recipe import workspace_bytes
from models.reducers.interface import KeepConfig, PatchReducer, ranking, take
from models.tokens import TokenGrid


@torch.no_grad()
def density_peaks(x_BNC: Tensor, count: int, neighbours: int) -> Tensor:
    """The cluster [B, N] of each token, of `count` numbered by falling score of their centres.

    D is the Euclidean distance over √C. A token's density ρ is exp(−mean D² of its `neighbours` nearest,
    itself included); δ is its distance to the nearest token of higher density, for the densest the largest
    distance of all. Centres have the highest ρ·δ; every other token goes to the centre nearest to it. Only
    some rows of D are in memory at once. Source: the k-nearest form of density peaks (Rodriguez and Laio,
    2014) in the public code of arXiv 2204.08680.
    """
    x_BNC = x_BNC.to(torch.promote_types(x_BNC.dtype, torch.float32))
    nearest = min(neighbours, x_BNC.shape[1])
    densities, farthest = [], []
    for distance_BIN, _ in _distances(x_BNC):
        near = distance_BIN.topk(nearest, dim=2, largest=False).values
        densities.append((-near.square().mean(2)).exp())
        farthest.append(distance_BIN.amax((1, 2)))
    density_BN, farthest_B1 = torch.cat(densities, 1), torch.stack(farthest, 1).amax(1, keepdim=True)
    higher = []
    for distance_BIN, rows in _distances(x_BNC):
        denser = density_BN[:, None] > density_BN[:, rows, None]
        higher.append(torch.where(denser, distance_BIN, farthest_B1[:, None]).amin(2))
    centres_BK = ranking(density_BN * torch.cat(higher, 1))[:, :count]
    cluster_BN = _distance(x_BNC, take(x_BNC, centres_BK)).argmin(2)
    return cluster_BN.scatter(1, centres_BK, torch.arange(count, device=x_BNC.device).expand_as(centres_BK))


def _distances(x_BNC: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Some rows of D at a time, [B, I, N], and which."""
    B, N, _ = x_BNC.shape
    most = max(1, workspace_bytes(None, device_type(x_BNC.device)) // (4 * B * N * x_BNC.element_size()))
    for start in range(0, N, most):
        rows = slice(start, start + most)
        yield _distance(x_BNC[:, rows], x_BNC), rows


def _distance(x_BIC: Tensor, y_BNC: Tensor) -> Tensor:
    """[B, I, N], by differences: a token's distance to itself is 0."""
    distance = torch.cdist(x_BIC, y_BNC, compute_mode="donot_use_mm_for_euclid_dist")
    return distance * x_BIC.shape[-1] ** -0.5


def merged(x_BNC: Tensor, weight_BN: Tensor, cluster_BN: Tensor, count: int, least: float = 0.0) -> Tensor:
    """Σ w·x / (Σ w + least) of each cluster, [B, K, C]; the gradient reaches x and w.

    As a product with the members' weights [B, K, N], whose sums have a fixed order.
    """
    numbers_K1 = torch.arange(count, device=x_BNC.device)[:, None]
    member_BKN = torch.where(cluster_BN[:, None] == numbers_K1, weight_BN[:, None], 0.0)
    member_BKN = member_BKN / (member_BKN.sum(2, keepdim=True) + least)
    return member_BKN.to(x_BNC.dtype) @ x_BNC


class DensityPeaks(PatchReducer):
    """The mean of each of `left` clusters, by falling score of their centres."""

    def __init__(self, dim: int, tokens: TokenGrid, left: int, neighbours: int) -> None:
        super().__init__(dim, tokens)
        self.left, self.neighbours = left, neighbours

    def reduce(self, x_BNC: Tensor, importance_BN: Tensor | None) -> Tensor:
        cluster_BN = density_peaks(x_BNC, self.left, self.neighbours)
        if self.watch is not None:
            self.watch(cluster_BN)
        return merged(x_BNC, x_BNC.new_ones(x_BNC.shape[:2]), cluster_BN, self.left)


class DensityPeaksConfig(KeepConfig):
    """Clusters around density peaks, a mean token of each.

    neighbours   with itself, of a token's density
    """

    kind: Literal["density_peaks"] = "density_peaks"
    neighbours: int = Field(default=5, ge=1)

    def build(self, dim: int, tokens: TokenGrid) -> DensityPeaks:
        return DensityPeaks(dim, tokens, self.left(tokens), self.neighbours)
