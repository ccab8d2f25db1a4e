"""Translution without the N² weights: a pass over the blocks of the offset grid.

Forward keeps a running log-sum-exp and a running *normalised* output: with w = exp(a − lse) the
update of a pair is o ← o + w (v − o), one fused pass. Backward recomputes q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.products import Bank, gathered_bytes
from models.ops.recipe import AllPairs, Combine, Operand, Recipe
from models.ops.rows import RowGradients, Rows, Side, Tokens, view_tokens
from models.ops.schedule import Chunk, Schedule
from models.ops.stage import Scratch, stage


def streamed(
    recipe: Recipe,
    schedule: Schedule,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
    combine: Combine | None = None,
) -> list[Tensor]:
    """Attention over all pairs of the schedule: sources [N, B, C_s], banks [K, C_s, D_b] → a [N, B, D]
    for each value segment, in the sources' (or autocast's) dtype.

    Statistics are float32, or float64 for float64 inputs. Raises ValueError for a source of the wrong
    length or a bank of the wrong number of entries. Source: arXiv 2510.10060, section 3.
    """
    for source in sources:
        if source.shape[0] != schedule.grid.num_tokens:
            raise ValueError(
                f"{source.shape[0]} tokens given to {schedule.grid}, which has {schedule.grid.num_tokens}"
            )
    for bank in banks:
        if bank.shape[0] != schedule.num_entries:
            raise ValueError(f"a bank of {bank.shape[0]} entries given, the grid has {schedule.num_entries}")
    return list(_Streamed.apply(recipe, schedule, combine or AllPairs(), len(sources), *sources, *banks))


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, recipe: Recipe, schedule: Schedule, combine: Combine, num_sources: int, *tensors: Tensor
    ):
        sources, banks = tensors[:num_sources], tensors[num_sources:]
        work = [source.to(_compute_dtype(sources[0])) for source in sources]
        N, B, H = *work[0].shape[:2], recipe.heads
        statistics = torch.promote_types(work[0].dtype, torch.float32)
        lse = work[0].new_full((N, B, H), -torch.inf, dtype=statistics)
        outs = [
            work[0].new_zeros((N, B, H, width // H), dtype=statistics)
            for width in (_width(operand, work, banks) for operand in recipe.values)
        ]
        entries = [Bank(bank) for bank in banks]
        scratch = Scratch(work[0])
        kept: list[Tensor] = []
        for samples, chunks in _steps(recipe, schedule, work, banks):
            state, tokens = (_views(ts, samples, schedule) for ts in ((lse, *outs), work))
            rows = Rows(tokens, scratch)
            for chunk in chunks:
                pairs = _Pairs(recipe, chunk, tokens, rows, entries, scratch)
                q, k, v = pairs.project(fresh=recipe.keep)
                if recipe.keep:
                    kept += [*q, *k, *v]
                compute = stage(recipe.compiled and chunk.uniform)
                a = compute.logits(q, k, recipe.scale, statistics, scratch=scratch)
                compute.merge(
                    *(chunk.queries(t) for t in state),
                    logits=chunk.layers(a, -torch.inf),
                    values=[chunk.layers(value, 0.0) for value in v],
                )
        lse, outs = combine.merge(lse, outs)
        ctx.save_for_backward(lse, *outs, *sources, *banks, *kept)
        ctx.recipe, ctx.schedule, ctx.combine = recipe, schedule, combine
        ctx.counts = (1, len(outs), len(sources), len(banks), len(kept))
        ctx.dtype = work[0].dtype
        return tuple(out.flatten(2).to(ctx.dtype) for out in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        recipe, schedule = ctx.recipe, ctx.schedule
        saved = iter(ctx.saved_tensors)
        (lse,), outs, sources, banks, kept = (list(islice(saved, count)) for count in ctx.counts)
        work = [source.to(ctx.dtype) for source in sources]
        grads = [g.to(ctx.dtype).unflatten(2, o.shape[2:]) for g, o in zip(grad_outs, outs, strict=True)]
        products = ((g * out).sum(-1) for g, out in zip(grads, outs, strict=True))
        delta = sum(products, start=torch.zeros_like(lse))
        grad_sources = [torch.zeros(w.shape, dtype=lse.dtype, device=w.device) for w in work]
        entries = [Bank(bank) for bank in banks]
        scratch, kept = Scratch(work[0]), iter(kept)
        for samples, chunks in _steps(recipe, schedule, work, banks):
            state, tokens, grad_tokens = (
                _views(ts, samples, schedule) for ts in ((lse, delta, *grads), work, grad_sources)
            )
            rows, grad_rows = Rows(tokens, scratch), RowGradients(grad_tokens, scratch)
            for chunk in chunks:
                pairs = _Pairs(recipe, chunk, tokens, rows, entries, scratch)
                q, k, v = _segments(recipe, kept) if recipe.keep else pairs.project()
                at_pairs = [chunk.rows("query", t) for t in state]
                compute = stage(recipe.compiled and chunk.uniform)
                grad_qkv = compute.gradients(q, k, v, *at_pairs, scale=recipe.scale, scratch=scratch)
                pairs.backpropagate(*grad_qkv, grad_tokens, grad_rows)
            grad_rows.finish()
        grad_banks = [bank.gradient() for bank in entries]
        grad_sources = ctx.combine.sum_gradients(grad_sources, grad_banks)
        grad_sources = [g.to(source.dtype) for g, source in zip(grad_sources, sources, strict=True)]
        return None, None, None, None, *grad_sources, *grad_banks


class _Pairs:
    """Projects the operands of one chunk, and backpropagates through the projections."""

    def __init__(
        self,
        recipe: Recipe,
        chunk: Chunk,
        sources: list[Tokens],
        rows: Rows,
        banks: Sequence[Bank],
        scratch: Scratch,
    ) -> None:
        self._recipe, self._chunk, self._sources, self._rows = recipe, chunk, sources, rows
        self._banks, self._scratch = banks, scratch
        self._batch = sources[0].tail[0]

    def project(self, fresh: bool = False) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """q, k of every logit segment and v of every value segment, [*pair_shape, B, H, E]; in new memory
        if `fresh`, else in the scratch."""
        return (
            [
                self._project(q, "query", None if fresh else ("q", i))
                for i, (q, _) in enumerate(self._recipe.logits)
            ],
            [
                self._project(k, "key", None if fresh else ("k", i))
                for i, (_, k) in enumerate(self._recipe.logits)
            ],
            [self._project(v, "key", None if fresh else ("v", i)) for i, v in enumerate(self._recipe.values)],
        )

    def backpropagate(
        self,
        grad_q: list[Tensor],
        grad_k: list[Tensor],
        grad_v: list[Tensor],
        grad_sources: list[Tokens],
        grad_rows: RowGradients,
    ) -> None:
        """Adds the operands' gradients [*pair_shape, B, H, E] to those of their sources and banks."""
        operands: list[tuple[Operand, Side, Tensor]] = [
            *((q, "query", g) for (q, _), g in zip(self._recipe.logits, grad_q, strict=True)),
            *((k, "key", g) for (_, k), g in zip(self._recipe.logits, grad_k, strict=True)),
            *((v, "key", g) for v, g in zip(self._recipe.values, grad_v, strict=True)),
        ]
        products: dict[tuple[int, Side], list[tuple[int, Tensor]]] = {}
        for operand, side, grad in operands:
            grad = self._chunk.fold(side, grad)
            width = grad.shape[-2] * grad.shape[-1]
            if operand.bank is None:
                self._chunk.add_rows(side, grad_sources[operand.source], grad.view(*grad.shape[:-2], width))
            else:
                products.setdefault((operand.source, side), []).append((operand.bank, grad.view(-1, width)))
        for (source, side), grads in products.items():
            part, runs = self._chunk.parts[side], self._chunk.runs[side]
            rows, grad_here = self._rows.read(source, side, part), grad_rows.at(source, side, part)
            for bank, grad in grads:
                self._banks[bank].add_gradient(rows, grad, runs, self._batch)
                self._banks[bank].multiply_back(grad, runs, self._batch, grad_here)

    def _project(self, operand: Operand, side: Side, place: object) -> Tensor:
        heads = self._recipe.heads
        if operand.bank is None:
            rows = self._chunk.rows(side, self._sources[operand.source])
            return rows.view(*rows.shape[:-1], heads, -1)
        rows = self._rows.read(operand.source, side, self._chunk.parts[side])
        bank = self._banks[operand.bank]
        shape = (*self._chunk.shape[side], self._batch, heads, bank.width // heads)
        out = rows.new_empty(shape) if place is None else self._scratch(place, shape)
        bank.multiply(rows, self._chunk.runs[side], self._batch, out.view(-1, bank.width))
        return out


def _segments(recipe: Recipe, kept: Iterator[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The next chunk's q, k and v."""
    logits, values = len(recipe.logits), len(recipe.values)
    return list(islice(kept, logits)), list(islice(kept, logits)), list(islice(kept, values))


def _views(tensors: Sequence[Tensor], samples: slice, schedule: Schedule) -> list[Tokens]:
    return [view_tokens(t[:, samples], schedule.grid) for t in tensors]


def _steps(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> Iterator[tuple[slice, Sequence[Chunk]]]:
    """All chunks, for as many samples at a time as fit the workspace."""
    batch, device = sources[0].shape[1], sources[0].device
    pair_bytes = _pair_bytes(recipe, sources, banks)
    entry_bytes = gathered_bytes(banks, sources[0])
    step = schedule.batch_slice(batch, pair_bytes, recipe.workspace)
    for start in range(0, batch, step):
        samples = slice(start, min(start + step, batch))
        chunks = schedule.chunks(samples.stop - start, pair_bytes, recipe.workspace, device, entry_bytes)
        yield samples, chunks


def _pair_bytes(recipe: Recipe, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> int:
    """Bytes of a pair in backward, the larger pass: rows, operands and their gradients; gradients of rows,
    and sums, are in the statistics' dtype."""
    sides = [(o, side) for pair in recipe.logits for o, side in zip(pair, ("query", "key"), strict=True)]
    sides += [(o, "key") for o in recipe.values]
    read = {(o.source, side) for o, side in sides}
    rows = sum(sources[source].shape[2] for source, _ in read)
    widths = [_width(o, sources, banks) for o, _ in sides]
    product = sources[0].element_size()
    statistics = torch.promote_types(sources[0].dtype, torch.float32).itemsize
    summed = 3 * max(widths) * statistics if statistics != product else 0
    return rows * (product + statistics) + 2 * sum(widths) * product + summed


def _width(operand: Operand, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> int:
    return (sources[operand.source] if operand.bank is None else banks[operand.bank]).shape[2]


def _compute_dtype(source: Tensor) -> torch.dtype:
    kind = source.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if cast else source.dtype
