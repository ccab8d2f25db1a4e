"""Compares the kernels of the operator on this machine: with the equations, with each other, with themselves.

Small cases of every variant are compared with the equations in float64, outputs and all gradients; cases
of a real layer's size, for which the equations have no memory, with the loop in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.kernel_choice import why_not
from models.ops.naive import per_pair
from models.ops.recipe import Kernel, Operand, Recipe
from models.ops.streamed import streamed

KERNELS: tuple[Kernel, ...] = ("loop", "grouped", "fused")
# Relative error of the worst of output and gradients. bfloat16 rounds at about 0.004, several times in a row.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Case(NamedTuple):
    """One variant of a layer; `exact`: small enough for the equations."""

    name: str
    grid: OffsetGrid
    options: dict[str, Any] = {}  # noqa: RUF012
    batch: int = 5
    dim: int = 32
    heads: int = 2
    head_dim: int = 16
    exact: bool = True


CASES = [
    Case("2-D", OffsetGrid((3, 5))),
    Case("3-D", OffsetGrid((2, 3, 2))),
    Case("class token", OffsetGrid((3, 4), class_token=True)),
    Case("causal", OffsetGrid((9,), causal=True)),
    Case("shared entries", OffsetGrid((4, 4), share="clip(1)")),
    Case("shared, causal", OffsetGrid((40,), causal=True, share="log")),
    Case("shared, class token", OffsetGrid((9, 10), class_token=True, share="log")),
    Case("shared, relative v", OffsetGrid((40,), causal=True, share="log"), {"relative": "v"}),
    Case("shared, α", OffsetGrid((40,), causal=True, share="log"), {"rank": 8}),
    Case("kept q, k, v", OffsetGrid((3, 4), class_token=True), {"memory": "keep"}),
    *(Case(f"relative {r}", OffsetGrid((3, 3)), {"relative": r}) for r in ("q", "k", "v", "qk", "qv", "kv")),
    Case("α", OffsetGrid((3, 4), class_token=True), {"rank": 8}),
    Case("α, causal", OffsetGrid((9,), causal=True), {"rank": 8}),
    *(Case(f"α, relative {r}", OffsetGrid((3, 3)), {"relative": r, "rank": 8}) for r in ("v", "qk")),
]
LARGE_CASES = [
    Case("14×14, C=192", OffsetGrid((14, 14), class_token=True), {}, 32, 192, 3, 64, False),
    Case("14×14, C=768", OffsetGrid((14, 14), class_token=True), {}, 16, 768, 12, 64, False),
    Case("256 causal, C=192", OffsetGrid((256,), causal=True), {}, 8, 192, 3, 64, False),
    Case("1,024 causal, C=192, log", OffsetGrid((1024,), causal=True, share="log"), {}, 2, 192, 3, 64, False),
    Case("14×14, C=192, log", OffsetGrid((14, 14), class_token=True, share="log"), {}, 8, 192, 3, 64, False),
    Case("14×14, C=192, α", OffsetGrid((14, 14), class_token=True), {"rank": 8}, 32, 192, 3, 64, False),
]


class Check(NamedTuple):
    """A kernel on one case.

    error    relative, the worst of output and gradients; None where the kernel cannot run
    loop     the same against the loop in the same dtype
    repeats  whether a second run ended with the same bits
    reason   why the kernel cannot run
    failure  the error with which it ended
    """

    case: str
    dtype: torch.dtype
    kernel: Kernel
    error: float | None = None
    loop: float | None = None
    repeats: bool = True
    reason: str | None = None
    failure: str | None = None

    @property
    def agrees(self) -> bool:
        tolerance = TOLERANCES[self.dtype]
        errors = [error for error in (self.error, self.loop) if error is not None]
        return self.repeats and all(error <= tolerance for error in errors)  # NaN does not agree


def check_kernels(device: torch.device, cases: Sequence[Case]) -> Iterator[Check]:
    """Every kernel on every case, in float32 and bfloat16."""
    for case in cases:
        layer = _layer(case)
        sources, banks, grad_seed = _inputs(layer, case, device)
        if case.exact:
            wanted = _equations(layer, sources, banks, grad_seed)
        else:
            wanted = _run("loop", layer, sources, banks, grad_seed)
        for dtype in TOLERANCES:
            yield from _check_case(case, layer, [s.to(dtype) for s in sources], banks, grad_seed, wanted)


def _check_case(
    case: Case,
    layer: Translution,
    sources: list[Tensor],
    banks: list[Tensor],
    grad_seed: int,
    wanted: list[Tensor],
) -> Iterator[Check]:
    dtype, loop = sources[0].dtype, _run("loop", layer, sources, banks, grad_seed)
    for kernel in KERNELS:
        recipe = replace(layer.recipe, kernel=kernel)
        reason = why_not(kernel, recipe, layer.schedule, sources, banks)
        if reason is not None:
            yield Check(case.name, dtype, kernel, reason=reason)
            continue
        try:
            first, second = (_run(kernel, layer, sources, banks, grad_seed) for _ in range(2))
        except (RuntimeError, ValueError, AssertionError) as error:  # a kernel that this card cannot compile
            lines = str(error).strip().splitlines() or [type(error).__name__]
            yield Check(case.name, dtype, kernel, math.inf, math.inf, failure=lines[0])
            continue
        repeats = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        yield Check(
            case.name, dtype, kernel, relative_error(first, wanted), relative_error(first, loop), repeats
        )


def relative_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The worst ‖got − wanted‖ / ‖wanted‖ over pairs of tensors; NaN if any is."""
    pairs = ((a.double(), b.double()) for a, b in zip(got, wanted, strict=True))
    return float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max())


def _layer(case: Case) -> Translution:
    with torch.device("meta"):
        return Translution(case.dim, case.grid, case.heads, case.head_dim, **case.options)


def _inputs(layer: Translution, case: Case, device: torch.device) -> tuple[list[Tensor], list[Tensor], int]:
    """Sources [N, B, C_s] that bfloat16 holds exactly, banks [K, C_s, D], and a seed for ∂out."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).bfloat16().float().to(device)

    shapes = [layer.get_parameter(f"{name}_bank").shape for name in layer.relative]
    banks = [draw(*shape) * shape[1] ** -0.5 for shape in shapes]
    inner, narrow = layer.heads * layer.head_dim, layer.heads * (layer.rank or 0)
    widths: dict[int, int] = {}
    for operand, width in _operands(layer.recipe, inner, narrow):
        widths[operand.source] = width if operand.bank is None else shapes[operand.bank][1]
    tokens = layer.grid.num_tokens
    return [draw(tokens, case.batch, widths[source]) for source in sorted(widths)], banks, 1


def _operands(recipe: Recipe, inner: int, narrow: int) -> Iterator[tuple[Operand, int]]:
    """Every operand and its width: α-Translution's second segments are narrow."""
    for segments in (recipe.logits, tuple((value,) for value in recipe.values)):
        for place, segment in enumerate(segments):
            for operand in segment:
                yield operand, narrow if place else inner


def _run(
    kernel: Kernel, layer: Translution, sources: Sequence[Tensor], banks: Sequence[Tensor], grad_seed: int
) -> list[Tensor]:
    """Outputs and all gradients."""
    sources = [source.detach().requires_grad_() for source in sources]
    banks = [bank.detach().requires_grad_() for bank in banks]
    outs = streamed(replace(layer.recipe, kernel=kernel), layer.schedule, sources, banks)
    return _with_gradients(outs, [*sources, *banks], grad_seed)


def _equations(
    layer: Translution, sources: Sequence[Tensor], banks: Sequence[Tensor], grad_seed: int
) -> list[Tensor]:
    """The same in float64 and over all N² pairs at once."""
    sources = [source.double().requires_grad_() for source in sources]
    banks = [bank.double().requires_grad_() for bank in banks]
    recipe, entry = layer.recipe, layer.grid.table.to(sources[0].device)

    def of_pairs(operand: Operand, token: str) -> Tensor:
        """[B, N, N, H, E]"""
        f = sources[operand.source].transpose(0, 1)
        if operand.bank is not None:
            pairs = per_pair(f, banks[operand.bank], entry, token)
        else:
            pairs = (f[:, :, None] if token == "i" else f[:, None]).expand(-1, *entry.shape, -1)
        return pairs.unflatten(-1, (recipe.heads, -1))

    dots = [(of_pairs(q, "i") * of_pairs(k, "j")).sum(-1) for q, k in recipe.logits]
    logits = recipe.scale * torch.stack(dots).sum(0)
    weights = logits.masked_fill((entry < 0)[None, :, :, None], -torch.inf).softmax(2)
    outs = [torch.einsum("bijh,bijhe->ibhe", weights, of_pairs(v, "j")).flatten(2) for v in recipe.values]
    return _with_gradients(outs, [*sources, *banks], grad_seed)


def _with_gradients(outs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    grads = [torch.randn(out.shape, generator=random).bfloat16().to(out.device, out.dtype) for out in outs]
    return [out.detach() for out in outs] + list(torch.autograd.grad(outs, inputs, grads))
