"""RWKV's pull on the largest logit, which keeps logits from drifting upwards (the public v4 code: L2Wrap)."""

from __future__ import annotations

import torch
from torch import Tensor


def pulled(loss: Tensor, logits_BNV: Tensor, weight: float) -> Tensor:
    """The loss as it is; backward adds weight/(B·N)·(largest logit) to the gradient of each token's largest.

    What is added does not depend on the gradient of the loss, as in the public code: accumulating gradients
    over micro-batches changes its share.
    """
    return _Pull.apply(loss, logits_BNV, weight)


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Tensor, logits_BNV: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(logits_BNV)
        ctx.weight = weight
        return loss.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (logits_BNV,) = ctx.saved_tensors
        largest, place = logits_BNV.max(-1, keepdim=True)
        pull = torch.zeros_like(logits_BNV)
        pull.scatter_(-1, place, largest * (ctx.weight / place.numel()))
        return grad, pull, None
