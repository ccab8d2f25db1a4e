"""Translution without the N² weights, as one differentiable function.

The pairs are visited by a *walk*, which gives partial softmaxes over the pairs that are here; they are
merged with those of other places, and backward starts from the merged ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.delta.operator import delta_of
from models.ops.importance.class_row import add_class_row_gradients, class_row
from models.ops.importance.received import received, with_received
from models.ops.kernel_choice import choose_walk
from models.ops.recipe import AllPairs, Combine, Importance, Recipe
from models.ops.walk.operands import Operands, operand_width, segments, steps, view_all
from models.ops.walk.products import Bank
from models.ops.walk.rows import RowGradients, Rows
from models.ops.walk.schedule import Schedule
from models.ops.walk.stage import Scratch


def streamed(
    recipe: Recipe,
    schedule: Schedule,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
    combine: Combine | None = None,
    importance: Importance | None = None,
) -> list[Tensor]:
    """Attention over all pairs of the schedule: sources [N, B, C_s], banks [K, C_s, D_b] → a [N, B, D]
    for each value segment, in the sources' (or autocast's) dtype; with `importance` also [N, B, H], how much
    each head reads each token: the class token's weights, or the mean of all queries'.

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
    combine = combine or AllPairs()
    return list(_Streamed.apply(recipe, schedule, combine, importance, len(sources), *sources, *banks))


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        recipe: Recipe,
        schedule: Schedule,
        combine: Combine,
        importance: Importance | None,
        num_sources: int,
        *tensors: Tensor,
    ):
        sources, banks = tensors[:num_sources], tensors[num_sources:]
        dtype = _compute_dtype(sources[0])
        work = [source.to(dtype) for source in sources]
        walk = choose_walk(recipe, schedule, work, banks)
        lse, outs, kept = walk.forward(recipe, schedule, work, banks)
        lse, outs = combine.merge(lse, outs)
        read = []
        if importance is not None:
            sums = class_row if importance == "class" else received
            read = combine.sum_gradients([sums(recipe, schedule, work, banks, lse)], [])
        ctx.save_for_backward(lse, *outs, *sources, *banks, *kept, *read)
        ctx.recipe, ctx.schedule, ctx.combine, ctx.walk, ctx.dtype = recipe, schedule, combine, walk, dtype
        ctx.importance, ctx.counts = importance, tuple(map(len, ([lse], outs, sources, banks, kept, read)))
        return *(out.flatten(2).to(dtype) for out in outs), *read

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = iter(ctx.saved_tensors)
        (lse,), outs, sources, banks, kept, read = (list(islice(saved, count)) for count in ctx.counts)
        work = [source.to(ctx.dtype) for source in sources]
        of_outs = zip(grad_outs, outs, strict=False)  # then that of the importance
        grads = [g.to(ctx.dtype).unflatten(2, o.shape[2:]) for g, o in of_outs]
        recipe, walk, delta = ctx.recipe, ctx.walk, delta_of(grads, outs)
        if ctx.importance == "received":
            walk, recipe, work, delta, grads = with_received(
                recipe, ctx.schedule, ctx.combine, work, banks, delta, grads, grad_outs[-1]
            )
        grad_sources, grad_banks = walk.backward(recipe, ctx.schedule, work, banks, kept, lse, delta, grads)
        grad_sources = grad_sources[: len(sources)]
        if ctx.importance == "class":
            add_class_row_gradients(
                recipe, ctx.schedule, work, banks, read[0], grad_outs[-1], grad_sources, grad_banks
            )
        grad_sources = ctx.combine.sum_gradients(grad_sources, grad_banks)
        grad_sources = [g.to(source.dtype) for g, source in zip(grad_sources, sources, strict=True)]
        return None, None, None, None, None, *grad_sources, *grad_banks


def _compute_dtype(source: Tensor) -> torch.dtype:
    kind = source.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if cast else source.dtype


class PairWalk:
    """Visits the pairs chunk by chunk, in torch's operators.

    Forward keeps a running log-sum-exp and a running *normalised* output: with w = exp(a − lse) the
    update of a pair is o ← o + w (v − o), one fused pass. Backward recomputes q, k and v.
    """

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        N, B, H = *sources[0].shape[:2], recipe.heads
        statistics = torch.promote_types(sources[0].dtype, torch.float32)
        lse = sources[0].new_full((N, B, H), -torch.inf, dtype=statistics)
        outs = [
            sources[0].new_zeros((N, B, H, width // H), dtype=statistics)
            for width in (operand_width(operand, sources, banks) for operand in recipe.values)
        ]
        entries = [Bank(bank) for bank in banks]
        scratch = Scratch(sources[0])
        kept: list[Tensor] = []
        for samples, chunks in steps(recipe, schedule, sources, banks):
            state, tokens = (view_all(ts, samples, schedule) for ts in ((lse, *outs), sources))
            rows = Rows(tokens, scratch)
            for chunk in chunks:
                operands = Operands(recipe, chunk, tokens, rows, entries, scratch)
                projected = operands.project(fresh=recipe.keep)
                if recipe.keep:
                    kept += [t for each in projected for t in each]
                chunk.attend(recipe, projected, state, scratch)
        return lse, outs, kept

    @staticmethod
    def backward(
        recipe: Recipe,
        schedule: Schedule,
        sources: Sequence[Tensor],
        banks: Sequence[Tensor],
        kept: Sequence[Tensor],
        lse: Tensor,
        delta: Tensor,
        grads: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        grad_sources = [torch.zeros(s.shape, dtype=lse.dtype, device=s.device) for s in sources]
        entries = [Bank(bank) for bank in banks]
        scratch, saved = Scratch(sources[0]), iter(kept)
        for samples, chunks in steps(recipe, schedule, sources, banks):
            state, tokens, grad_tokens = (
                view_all(ts, samples, schedule) for ts in ((lse, delta, *grads), sources, grad_sources)
            )
            rows, grad_rows = Rows(tokens, scratch), RowGradients(grad_tokens, scratch)
            for chunk in chunks:
                operands = Operands(recipe, chunk, tokens, rows, entries, scratch)
                projected = segments(recipe, saved) if recipe.keep else operands.project()
                grads_of = chunk.gradients(recipe, projected, state, scratch)
                operands.backpropagate(grads_of, grad_tokens, grad_rows)
            grad_rows.finish()
        return grad_sources, [bank.gradient() for bank in entries]
