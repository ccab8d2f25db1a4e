"""Cross-entropy over a vocabulary, a chunk of tokens at a time: the logits of all tokens never exist.

Forward also computes the gradients, which makes a third pass over the vocabulary needless.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 1 << 26  # at a time: 256 MiB in float32


class Words(Protocol):
    """Which words the rows of the head's weight are, and how ranks that hold other words are reached.

    first   the word of row 0
    count   how many rows are words; those after them are padding
    """

    first: int
    count: int

    def max_(self, numbers: Tensor) -> None:
        """The maximum over the ranks, in place."""
        ...

    def sum_(self, numbers: Tensor) -> None:
        """The sum over the ranks, in place."""
        ...


class WholeVocabulary:
    """All words are here."""

    def __init__(self, count: int) -> None:
        self.first, self.count = 0, count

    def max_(self, numbers: Tensor) -> None:
        pass

    def sum_(self, numbers: Tensor) -> None:
        pass


def summed_cross_entropy(x_TC: Tensor, weight_VC: Tensor, targets_T: Tensor, words: Words) -> Tensor:
    """The sum over tokens of the cross-entropy of softmax(x Wᵀ) in nats, a scalar in float32 or better.

    Tokens with a negative target do not count. Products are in autocast's dtype, or the weight's.
    """
    return _SummedCrossEntropy.apply(x_TC, weight_VC, targets_T, words, torch.is_grad_enabled())


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, words: Words, trained: bool) -> Tensor:
        product, sums = _product_dtype(x, weight), torch.promote_types(x.dtype, torch.float32)
        total, weight_VC = torch.zeros((), dtype=sums, device=x.device), weight.to(product)
        grad_x, grad_weight = torch.empty_like(x) if trained else None, None
        rows = max(1, CHUNK_LOGITS // len(weight))
        for first in range(0, len(x), rows):
            part, target = x[first : first + rows].to(product), targets[first : first + rows]
            logits = (part @ weight_VC.T).to(sums)
            losses = _losses(logits, target, words)  # which leaves their gradient in `logits`
            total += losses.sum()
            if grad_x is not None:
                grad_logits = logits.to(product)
                grad_x[first : first + rows] = grad_logits @ weight_VC
                new = (grad_logits.T @ part).to(sums)
                grad_weight = new if grad_weight is None else grad_weight.add_(new)
        if grad_x is not None:
            ctx.words, ctx.weight_dtype = words, weight.dtype
            ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_x, grad_weight = ctx.saved_tensors
        grad_x = grad_x * grad.to(grad_x.dtype)
        ctx.words.sum_(grad_x)  # each rank has the share of its words
        return grad_x, (grad_weight * grad).to(ctx.weight_dtype), None, None, None


def _losses(logits: Tensor, target: Tensor, words: Words) -> Tensor:
    """Losses of tokens [t] from logits [t, V], which become the gradient of their sum."""
    logits[:, words.count :] = -torch.inf  # padding
    highest = logits.amax(1)
    words.max_(highest)
    logits.sub_(highest.unsqueeze(1))
    token, counts = torch.arange(len(target), device=target.device), target >= 0
    own = target - words.first
    here = (own >= 0) & (own < words.count) & counts
    own = own.clamp(0, logits.shape[1] - 1)
    aimed = torch.where(here, logits[token, own], 0.0)
    sums = torch.stack((logits.exp_().sum(1), aimed))
    words.sum_(sums)
    logits.div_(sums[0].unsqueeze(1))
    logits[token, own] -= here.to(logits.dtype)
    logits.mul_(counts.unsqueeze(1))
    return torch.where(counts, sums[0].log() - sums[1], 0.0)


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype
