"""The chunked scan of RWKV-4 equals its recurrence, and keeps it from overflowing."""

import pytest
import torch
from torch import Tensor

from models.mixers.rwkv.wkv import recurrence, wkv


def inputs(tokens: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(5,), (5,), (2, tokens, 5), (2, tokens, 5)]
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    drawn[2] *= scale
    return [each.requires_grad_() for each in drawn]


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 16, 17, 50])
def test_chunks_equal_the_recurrence_values_and_gradients(tokens: int):
    ours, naive = inputs(tokens), inputs(tokens)
    found, wanted = wkv(*ours), recurrence(*naive)
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(0))
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    for a, b in zip(ours, naive, strict=True):
        assert a.grad is not None
        wanted = torch.zeros_like(b) if b.grad is None else b.grad  # one token meets no decay
        assert torch.allclose(a.grad, wanted, rtol=1e-10, atol=1e-12)


def test_large_keys_overflow_neither_forward_nor_backward():
    """e^300 is no number in float32; a mean of values is between the least and the greatest."""
    ours = inputs(40, scale=100.0, dtype=torch.float32)
    y = wkv(*ours)
    y.sum().backward()
    v = ours[3]
    assert (y <= v.cummax(1).values + 1e-4).all()
    assert (y >= v.cummin(1).values - 1e-4).all()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in ours)
