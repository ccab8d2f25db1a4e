"""The loss in chunks is the loss of whole logits, on one rank and with the vocabulary spread over two."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.ops import cross_entropy
from models.ops.cross_entropy import WholeVocabulary, summed_cross_entropy
from parallel.mesh import ParallelConfig, join_mesh
from parallel.processes import join_processes
from parallel.sharding.vocabulary import ShardedVocabulary
from parallel.spawn import run_processes

T, C, V = 50, 8, 33


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, C, generator=generator, dtype=torch.float64).to(dtype) for n in (T, V))
    targets = torch.randint(V, (T,), generator=generator)
    targets[::7] = -100
    return x.requires_grad_(), weight.requires_grad_(), targets


def whole(x, weight, targets):
    """Loss and gradients of the mean, from all logits."""
    loss = F.cross_entropy((x @ weight.T).to(torch.promote_types(x.dtype, torch.float32)), targets)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


def in_chunks(x, weight, targets, words):
    loss = summed_cross_entropy(x, weight, targets, words) / (targets >= 0).sum()
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_and_gradients_are_those_of_whole_logits(rows, dtype, error, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", rows * V)
    for ours, theirs in zip(in_chunks(*case(dtype), WholeVocabulary(V)), whole(*case(dtype)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=error, atol=error)


def test_under_autocast_products_are_bfloat16_and_sums_float32(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 7 * V)
    x, weight, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, grad_x, grad_weight = in_chunks(x, weight, targets, WholeVocabulary(V))
        expected = whole(x, weight, targets)
    assert (loss.dtype, grad_x.dtype, grad_weight.dtype) == (torch.float32,) * 3
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=1e-6)
    for ours, theirs in ((grad_x, expected[1]), (grad_weight, expected[2])):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_no_tensor_is_as_large_as_the_logits(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 5 * V)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            outs = out if isinstance(out, tuple | list) else (out,)
            largest = max(largest, *(each.numel() for each in outs if isinstance(each, torch.Tensor)), 0)
            return out

    inputs = case()
    with Sizes():
        in_chunks(*inputs, WholeVocabulary(V))
    assert largest == T * C  # x itself; the logits would be T · V


def test_without_gradients_none_are_computed():
    x, weight, targets = case()
    with torch.no_grad():
        loss = summed_cross_entropy(x, weight, targets, WholeVocabulary(V))
    assert not loss.requires_grad


def test_a_vocabulary_over_two_ranks_gives_the_same():
    expected = whole(*case(torch.float32))
    for ours in run_processes(sharded, 2, seconds=60):
        for mine, theirs in zip(ours, expected, strict=True):
            torch.testing.assert_close(torch.tensor(mine), theirs, rtol=1e-6, atol=1e-6)


def sharded():
    """Of 33 words rank 0 has 17, rank 1 has 16 and a row of padding; its gradient goes to no word."""
    join_processes(torch.device("cpu"))
    mesh = join_mesh(ParallelConfig(tensor=2))
    cross_entropy.CHUNK_LOGITS = 7 * 17
    x, weight, targets = case(torch.float32)
    first, count = (0, 17) if mesh.rank == 0 else (17, 16)
    own = torch.zeros(17, C)
    own[:count] = weight.detach()[first : first + count]
    words = ShardedVocabulary(mesh.group("model"), first, count)
    loss, grad_x, grad_own = in_chunks(x, own.requires_grad_(), targets, words)
    assert not grad_own[count:].any()
    parts = [torch.empty_like(grad_own) for _ in range(2)]
    torch.distributed.all_gather(parts, grad_own, group=mesh.group("model"))
    return loss.tolist(), grad_x.tolist(), torch.cat(parts)[:V].tolist()
