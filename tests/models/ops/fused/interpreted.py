"""What the tests of the fused walk run in a process of their own, whose Triton interprets kernels."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from unittest import mock

import torch
from torch import Tensor

from models.dealing import deal
from models.offsets import OffsetGrid
from models.ops import naive, streamed
from models.ops.fused.operators import fused_backward, fused_forward
from models.ops.fused.walk import FusedWalk
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import PairWalk
from models.ops.walk.schedule import Schedule, whole_schedule


def interpreter() -> ProcessPoolExecutor:
    """One process whose Triton interprets: it has to be told before triton is imported, so by the environment
    that the process is born with."""
    pool = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,))
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        pool.submit(len, ()).result()
    return pool


@dataclass(frozen=True)
class Case:
    """A layer of full Translution: x [N, B, C], H heads of E."""

    grid: OffsetGrid
    batch: int = 3
    channels: int = 16
    heads: int = 2
    head_dim: int = 16
    relative: str = "qkv"
    dtype: torch.dtype = torch.float32
    bank_dtype: torch.dtype | None = None
    keep: bool = False
    workspace: int = 64 << 20


class Layer:
    """Inputs of a case, and its recipe; a projection that is not relative is one matrix, applied outside."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        D = case.heads * case.head_dim
        self.case, bank_dtype = case, case.bank_dtype or case.dtype
        self.x = torch.randn(case.grid.num_tokens, case.batch, case.channels).to(case.dtype)
        shapes = {name: (case.grid.num_entries,) if name in case.relative else () for name in "qkv"}
        self.W = {
            name: torch.randn(*shape, case.channels, D)
            .mul_(1.3 * case.channels**-0.5)
            # what the products see, so that the reference sees it too
            .to(case.dtype)
            .to(bank_dtype if shape else case.dtype)
            for name, shape in shapes.items()
        }
        self.grad_out = torch.randn(case.grid.num_tokens, case.batch, D).to(case.dtype)
        bank = {name: index for index, name in enumerate(case.relative)}
        shared = [name for name in "qkv" if name not in bank]
        q, k, v = (
            Operand(0, bank[name]) if name in bank else Operand(1 + shared.index(name)) for name in "qkv"
        )
        self.recipe = Recipe(
            ((q, k),), (v,), case.heads, case.head_dim**-0.5, case.keep, workspace=case.workspace
        )
        self.schedule = whole_schedule(case.grid, in_bands=False)
        self.shared = shared

    def sources(self, x: Tensor, W: dict[str, Tensor]) -> list[Tensor]:
        return [x, *(x @ W[name] for name in self.shared)]

    def run(self, walk: type) -> list[Tensor]:
        """out, ∂x, ∂W of q, k and v."""
        x, W = self.x.clone().requires_grad_(), {n: w.clone().requires_grad_() for n, w in self.W.items()}
        banks = [W[name] for name in self.case.relative]
        with mock.patch.object(streamed, "choose_walk", return_value=walk):
            (out,) = streamed.streamed(self.recipe, self.schedule, self.sources(x, W), banks)
        return [out.detach(), *torch.autograd.grad(out, [x, *W.values()], self.grad_out)]

    def reference(self) -> list[Tensor]:
        """The same by the definition, in float64."""
        x = self.x.double().transpose(0, 1).requires_grad_()
        W = [w.double().requires_grad_() for w in self.W.values()]
        out = naive.translution(x, W[0], W[1], W[2], self.case.grid.table, self.case.heads)
        grads = torch.autograd.grad(out, [x, *W], self.grad_out.double().transpose(0, 1))
        return [out.detach().transpose(0, 1), grads[0].transpose(0, 1), *grads[1:]]


def errors(case: Case, walk: type = FusedWalk) -> list[float]:
    """Relative errors of out, ∂x and each ∂W against the definition."""
    layer = Layer(case)
    assert walk is not FusedWalk or FusedWalk.why_not(*_arguments(layer)) is None
    return relative_errors(layer.run(walk), layer.reference())


def bfloat16_errors(case: Case) -> tuple[list[float], list[float]]:
    """Of the fused walk and of the walk in torch's operators, both in bfloat16."""
    case = replace(case, dtype=torch.bfloat16)
    return errors(case), errors(case, PairWalk)


def repeats(case: Case) -> bool:
    """Whether two runs give the same bits."""
    return all(map(torch.equal, Layer(case).run(FusedWalk), Layer(case).run(FusedWalk)))


def shard_errors(case: Case, ranks: int) -> list[float]:
    """Relative errors of lse, out and all gradients, where each of `ranks` holds some offsets' entries."""
    layer = Layer(case)
    sources = layer.sources(layer.x, layer.W)
    banks = [layer.W[name] for name in case.relative]
    lse, (out,), _ = PairWalk.forward(layer.recipe, layer.schedule, sources, banks)
    grad = layer.grad_out.unflatten(2, out.shape[2:])
    delta = (grad * out).sum(-1)
    expected = [
        lse,
        out,
        *_flat(PairWalk.backward(layer.recipe, layer.schedule, sources, banks, [], lse, delta, [grad])),
    ]
    lses, outs, grad_sources = [], [], [torch.zeros_like(source) for source in sources]
    grad_banks = [torch.full_like(bank, torch.nan) for bank in banks]
    for share in deal(layer.schedule, ranks):
        held = list(share.entries)
        schedule = share.schedule(layer.schedule)
        local = [bank[held] for bank in banks]
        part = FusedWalk.forward(layer.recipe, schedule, sources, local)
        lses.append(part[0])
        outs.append(part[1][0])
        grads = FusedWalk.backward(layer.recipe, schedule, sources, local, part[2], lse, delta, [grad])
        for total, one in zip(grad_sources, grads[0], strict=True):
            total += one
        for total, one in zip(grad_banks, grads[1], strict=True):
            total[held] = one
    weights = torch.stack(lses).softmax(0).unsqueeze(-1)
    merged = [
        torch.stack(lses).logsumexp(0),
        sum(weight * o for weight, o in zip(weights, outs, strict=True)),
    ]
    return relative_errors([*merged, *grad_sources, *grad_banks], expected)


def _flat(gradients: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [*gradients[0], *gradients[1]]


def samples_with_nan(case: Case) -> list[int]:
    """The samples whose outputs or gradients are not finite when token 0 of sample 0 is NaN."""
    layer = Layer(case)
    layer.x[0, 0] = torch.nan
    out, grad_x, *_ = layer.run(FusedWalk)
    spoiled = [~tensor.isfinite().all(2).all(0) for tensor in (out, grad_x)]
    return (spoiled[0] | spoiled[1]).nonzero().flatten().tolist()


def nothing_here(case: Case) -> tuple[bool, bool, bool]:
    """Of a schedule without pairs: whether lse is −inf, out 0 and every gradient 0."""
    layer = Layer(case)
    recipe, _, sources, banks = _arguments(layer)
    schedule = Schedule(case.grid, (), ())
    lse, (out,), kept = FusedWalk.forward(recipe, schedule, sources, banks)
    grads = FusedWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [torch.ones_like(out)])
    return bool((lse == -torch.inf).all()), not out.any(), not any(g.any() for g in _flat(grads))


def check_operators(case: Case) -> None:
    """torch's own checks of a custom operator: its schema, and that its fake agrees with it."""
    layer = Layer(case)
    recipe, schedule, sources, banks = _arguments(layer)
    calls = []

    def record(operator):
        return lambda *arguments: calls.append((operator, arguments)) or operator(*arguments)

    with (
        mock.patch("models.ops.fused.walk.fused_forward", record(fused_forward)),
        mock.patch("models.ops.fused.walk.fused_backward", record(fused_backward)),
    ):
        lse, outs, kept = FusedWalk.forward(recipe, schedule, sources, banks)
        grad = layer.grad_out.unflatten(2, outs[0].shape[2:])
        FusedWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [grad])
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def _arguments(layer: Layer) -> tuple[Recipe, Schedule, list[Tensor], list[Tensor]]:
    banks = [layer.W[name] for name in layer.case.relative]
    return layer.recipe, layer.schedule, layer.sources(layer.x, layer.W), banks


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        ((a.double() - b.double()).norm() / b.double().norm()).item()
        for a, b in zip(found, expected, strict=True)
    ]
