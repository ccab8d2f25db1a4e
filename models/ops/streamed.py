"""Translution without the N² weights: a pass over the blocks of the offset grid (DESIGN section 3).

Every variant is one operator. A pair's query, key and value are made of *operands*: rows of a
source [N, B, C], taken as they are, or multiplied by the bank entry of the pair's offset. Logits are
the sum of ⟨query, key⟩ over the logit segments; every value segment is aggregated on its own:

    full Translution     logits (q, k), value (v): each a bank over x, or a shared projection of x
    α-Translution        logits (dense q, dense k) + (relative q, relative k), values dense and relative

Forward keeps a running log-sum-exp and a running *normalised* output: with w = exp(a − lse) the
update of a pair is o ← o + w (v − o), one fused pass. Backward recomputes q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.plan import Chunk, Plan, Side, Tokens, view_tokens
from models.ops.products import BankGradient, multiply, multiply_back
from models.ops.stage import stage


@dataclass(frozen=True)
class Operand:
    """Rows of `sources[source]`, multiplied by `banks[bank]` unless bank is None."""

    source: int
    bank: int | None = None


class Combine(Protocol):
    """What unites the parts of a softmax whose pairs are spread over processes."""

    def softmax(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """From this process's lse[N, B, H] and normalised outs[N, B, H, E] to those of all pairs."""
        ...

    def gradient(self, grads: list[Tensor]) -> list[Tensor]:
        """Sums the gradients of the sources [N, B, C] over the processes."""
        ...


class Alone:
    """All pairs are here."""

    def softmax(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return lse, outs

    def gradient(self, grads: list[Tensor]) -> list[Tensor]:
        return grads


@dataclass(frozen=True)
class Recipe:
    """How pairs are made of sources and banks, and how the pass over them is run.

    logits     (query operand, key operand) of each segment; values: the operand of each segment
    heads      H; the width of every operand is H times its head width
    scale      of the summed logits
    keep       save the projected q, k, v of all pairs for backward (N²·B·D numbers each) instead of
               recomputing them
    workspace  cap in bytes of a chunk's temporaries
    compiled   fuse the element-wise stage with torch.compile
    """

    logits: tuple[tuple[Operand, Operand], ...]
    values: tuple[Operand, ...]
    heads: int
    scale: float
    keep: bool = False
    workspace: int = 64 << 20
    compiled: bool = False


def streamed(
    recipe: Recipe,
    plan: Plan,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
    combine: Combine | None = None,
) -> list[Tensor]:
    """Attention over all pairs of the plan: sources [N, B, C_s], banks [K, C_s, D_b] → a [N, B, D]
    for each value segment, in the sources' (or autocast's) dtype.

    Statistics are float32, or float64 for float64 inputs. Raises ValueError for a source of the wrong
    length or a bank of the wrong number of entries. Source: arXiv 2510.10060, section 3.
    """
    for source in sources:
        if source.shape[0] != plan.grid.num_tokens:
            raise ValueError(
                f"{source.shape[0]} tokens given to {plan.grid}, which has {plan.grid.num_tokens}"
            )
    for bank in banks:
        if bank.shape[0] != plan.num_entries:
            raise ValueError(f"a bank of {bank.shape[0]} entries given, the plan has {plan.num_entries}")
    return list(_Streamed.apply(recipe, plan, combine or Alone(), len(sources), *sources, *banks))


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recipe: Recipe, plan: Plan, combine: Combine, num_sources: int, *tensors: Tensor):
        sources, banks = tensors[:num_sources], tensors[num_sources:]
        work = [source.to(_compute_dtype(sources[0])) for source in sources]
        N, B, H = *work[0].shape[:2], recipe.heads
        statistics = torch.promote_types(work[0].dtype, torch.float32)
        lse = work[0].new_full((N, B, H), -torch.inf, dtype=statistics)
        outs = [
            work[0].new_zeros((N, B, H, width // H), dtype=statistics)
            for width in (_width(operand, work, banks) for operand in recipe.values)
        ]
        compute = stage(recipe.compiled)
        ctx.kept = []
        for samples, chunk in _steps(recipe, plan, work, banks):
            state = [chunk.queries(view_tokens(t[:, samples], plan.grid)) for t in (lse, *outs)]
            q, k, v = _Pairs(
                recipe, chunk, [view_tokens(w[:, samples], plan.grid) for w in work], banks
            ).project()
            if recipe.keep:
                ctx.kept.append((q, k, v))
            a = chunk.layers(compute.logits(q, k, recipe.scale, statistics), -torch.inf)
            compute.merge(state[0], state[1:], a, [chunk.layers(value, 0.0) for value in v])
        lse, outs = combine.softmax(lse, outs)
        ctx.save_for_backward(lse, *outs, *sources, *banks)
        ctx.recipe, ctx.plan, ctx.combine, ctx.num_sources = recipe, plan, combine, num_sources
        ctx.dtype = work[0].dtype
        return tuple(out.flatten(2).to(ctx.dtype) for out in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outs: Tensor):
        recipe, plan = ctx.recipe, ctx.plan
        lse, *tensors = ctx.saved_tensors
        outs, sources = tensors[: len(grad_outs)], tensors[len(grad_outs) :][: ctx.num_sources]
        banks = tensors[len(grad_outs) + ctx.num_sources :]
        work = [source.to(ctx.dtype) for source in sources]
        grad_outs = [
            g.to(ctx.dtype).unflatten(2, out.shape[2:]) for g, out in zip(grad_outs, outs, strict=True)
        ]
        delta = sum((g * out).sum(-1) for g, out in zip(grad_outs, outs, strict=True))
        grad_sources = [
            torch.zeros_like(w, dtype=lse.dtype, memory_format=torch.contiguous_format) for w in work
        ]
        grad_banks = [BankGradient(bank) for bank in banks]
        compute = stage(recipe.compiled)
        kept = iter(ctx.kept)
        for samples, chunk in _steps(recipe, plan, work, banks):
            state = [
                chunk.rows("query", view_tokens(t[:, samples], plan.grid)) for t in (lse, delta, *grad_outs)
            ]
            pairs = _Pairs(recipe, chunk, [view_tokens(w[:, samples], plan.grid) for w in work], banks)
            q, k, v = next(kept) if recipe.keep else pairs.project()
            grads = compute.gradients(q, k, v, *state[:2], state[2:], recipe.scale)
            grad_tokens = [view_tokens(g[:, samples], plan.grid) for g in grad_sources]
            pairs.backpropagate(*grads, grad_tokens, grad_banks)
        grad_sources = ctx.combine.gradient(grad_sources)
        grad_sources = [g.to(source.dtype) for g, source in zip(grad_sources, sources, strict=True)]
        return None, None, None, None, *grad_sources, *(g.total() for g in grad_banks)


class _Pairs:
    """The operands of one chunk: projected forward, and their gradients brought back."""

    def __init__(self, recipe: Recipe, chunk: Chunk, sources: list[Tokens], banks: Sequence[Tensor]) -> None:
        self._recipe, self._chunk, self._sources, self._banks = recipe, chunk, sources, banks
        self._read: dict[tuple[int, Side], Tensor] = {}

    def project(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """q, k of every logit segment and v of every value segment, [*pair_shape, B, H, E]."""
        return (
            [self._project(q, "query") for q, _ in self._recipe.logits],
            [self._project(k, "key") for _, k in self._recipe.logits],
            [self._project(v, "key") for v in self._recipe.values],
        )

    def backpropagate(
        self,
        grad_q: list[Tensor],
        grad_k: list[Tensor],
        grad_v: list[Tensor],
        grad_sources: list[Tokens],
        grad_banks: list[BankGradient],
    ) -> None:
        """Adds the operands' gradients [*pair_shape, B, H, E] to those of their sources and banks."""
        operands: list[tuple[Operand, Side, Tensor]] = [
            *((q, "query", g) for (q, _), g in zip(self._recipe.logits, grad_q, strict=True)),
            *((k, "key", g) for (_, k), g in zip(self._recipe.logits, grad_k, strict=True)),
            *((v, "key", g) for v, g in zip(self._recipe.values, grad_v, strict=True)),
        ]
        grad_rows: dict[tuple[int, Side], Tensor] = {}
        for operand, side, grad in operands:
            grad = self._chunk.fold(side, grad).flatten(-2)
            if operand.bank is None:
                self._chunk.add_rows(side, grad_sources[operand.source], grad)
                continue
            key, bank, runs, batch = (
                (operand.source, side),
                operand.bank,
                self._chunk.runs[side],
                grad.shape[-2],
            )
            flat = grad.view(-1, grad.shape[-1])
            grad_banks[bank].add(_flat(self._rows(*key)), flat, runs, batch)
            grad_rows[key] = multiply_back(flat, self._banks[bank], runs, batch, grad_rows.get(key))
        for (source, side), rows in grad_rows.items():
            self._chunk.add_rows(side, grad_sources[source], rows.view(self._rows(source, side).shape))

    def _project(self, operand: Operand, side: Side) -> Tensor:
        rows = self._rows(operand.source, side)
        if operand.bank is not None:
            product = multiply(_flat(rows), self._banks[operand.bank], self._chunk.runs[side], rows.shape[-2])
            rows = product.view(*rows.shape[:-1], -1)
        return rows.unflatten(-1, (self._recipe.heads, -1))

    def _rows(self, source: int, side: Side) -> Tensor:
        key = (source, side)
        if key not in self._read:
            self._read[key] = self._chunk.rows(side, self._sources[source]).contiguous()
        return self._read[key]


def _flat(rows: Tensor) -> Tensor:
    return rows.view(-1, rows.shape[-1])


def _steps(
    recipe: Recipe, plan: Plan, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> Iterator[tuple[slice, Chunk]]:
    """The chunks, for as many samples at a time as the workspace holds."""
    batch, device = sources[0].shape[1], sources[0].device
    pair_bytes = _pair_numbers(recipe, sources, banks) * sources[0].element_size()
    step = plan.batch_slice(batch, pair_bytes, recipe.workspace)
    for start in range(0, batch, step):
        samples = slice(start, min(start + step, batch))
        for chunk in plan.chunks(samples.stop - start, pair_bytes, recipe.workspace, device):
            yield samples, chunk


def _pair_numbers(recipe: Recipe, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> int:
    """The numbers a pair takes in backward, the larger pass: rows read and their gradients, each
    operand and its gradient."""
    sides = [(o, side) for pair in recipe.logits for o, side in zip(pair, ("query", "key"), strict=True)]
    sides += [(o, "key") for o in recipe.values]
    read = {(o.source, side) for o, side in sides}
    return 2 * (
        sum(sources[source].shape[2] for source, _ in read) + sum(_width(o, sources, banks) for o, _ in sides)
    )


def _width(operand: Operand, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> int:
    return (sources[operand.source] if operand.bank is None else banks[operand.bank]).shape[2]


def _compute_dtype(source: Tensor) -> torch.dtype:
    kind = source.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else source.dtype
