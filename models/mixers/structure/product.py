"""Linear layers between structured embeddings (arXiv 1905.01289): mixed products and structure matrices.

A linear layer from X[N, P] to Y[M, Q] has a tensor Φ[M, N, P, Q]. Written as the mixed product of K structure
matrices A[K, M, N] and parameters Θ[K, P, Q] it is Y = Σ_k A_k X Θ_k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mixed_product(a: Tensor, b: Tensor) -> Tensor:
    """Σ_k a_k ⊗ b_k of a[K, …S] and b[K, …T]: a tensor […S, …T]."""
    return torch.einsum("ks,kt->st", a.flatten(1), b.flatten(1)).view(*a.shape[1:], *b.shape[1:])


def invert(a: Tensor, phi: Tensor) -> Tensor:
    """Θ[K, …T] of least squared error between the mixed product of a[K, …S] with it and phi[…S, …T].

    Where `a` is a basis, K = |S| and invertible, the product equals phi, and Θ is the only one. Raises
    ValueError for dimensions that do not fit.
    """
    shape = a.shape[1:]
    if phi.shape[: len(shape)] != shape:
        raise ValueError(f"a tensor of shape {tuple(phi.shape)}: it must begin with {tuple(shape)}")
    rows, wanted = a.flatten(1).T, phi.flatten(0, len(shape) - 1)
    columns = wanted.reshape(len(rows), -1)
    complete = rows.shape[0] == rows.shape[1]
    theta = torch.linalg.solve(rows, columns) if complete else torch.linalg.lstsq(rows, columns).solution
    return theta.reshape(len(a), *phi.shape[len(shape) :])


def structured(x: Tensor, matrices: Tensor, theta_KPQ: Tensor) -> Tensor:
    """Σ_k A_k X Θ_k of x[B, N, P] and A[K, M, N] (of all samples) or [B, K, M, N]: [B, M, Q]."""
    each = matrices if matrices.dim() == 4 else matrices[None]
    return torch.einsum("bkmn,bnp,kpq->bmq", each.expand(len(x), -1, -1, -1), x, theta_KPQ)


def window(shape: tuple[int, ...], reach: tuple[int, ...], causal: bool = False) -> Tensor:
    """offsets[K, dims], query − key, within ±reach along each dimension (causal: 0 … reach), row-major."""
    sides = [torch.arange(0 if causal else -r, r + 1) for r in reach]
    return torch.cartesian_prod(*sides).view(-1, len(shape))


def shift_matrices(shape: tuple[int, ...], reach: tuple[int, ...], causal: bool = False) -> Tensor:
    """S[K, N, N] of the offsets of `window`: 1 where query − key is the offset, else 0, also at borders."""
    N = math.prod(shape)
    places = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(N, -1)
    delta = places[:, None] - places[None]
    return (delta == window(shape, reach, causal)[:, None, None]).all(-1).double()
