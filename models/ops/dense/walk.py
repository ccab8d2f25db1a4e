"""The walk for variants with a dense part: logits or values that no bank multiplies.

α-Translution is a dense attention path beside a narrow relative one; a variant with some shared projections
has dense logits or dense values. The dense parts are ordinary attention, a matrix product for all pairs of
a head. Only the relative parts visit the pairs block by block, with what they need of the others in
memory: logits and weights [B, H, I, N] for the products, [H, I·N, B] for the visit, of I queries at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.ops.dense.columns import Columns
from models.ops.dense.parts import parts_of, steps
from models.ops.dense.relative import Relative, at_queries, take
from models.ops.recipe import Recipe
from models.ops.walk.operands import operand_width
from models.ops.walk.products import Bank
from models.ops.walk.schedule import Schedule
from models.ops.walk.stage import Scratch


class DenseWalk:
    """See `Walk`."""

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        parts, (N, B), H, grid = parts_of(recipe), sources[0].shape[:2], recipe.heads, schedule.grid
        statistics = torch.promote_types(sources[0].dtype, torch.float32)
        widths = [operand_width(value, sources, banks) // H for value in recipe.values]
        lse = sources[0].new_empty((N, B, H), dtype=statistics)
        outs = [sources[0].new_zeros((N, B, H, width), dtype=statistics) for width in widths]
        entries, scratch = [Bank(bank) for bank in banks], Scratch(sources[0])
        kept: list[Tensor] = []
        for samples, queries in steps(parts, schedule, sources, banks):
            here = [source[:, samples] for source in sources]
            batch, count = here[0].shape[1], queries.tokens.stop - queries.tokens.start
            relative = Relative(parts.relative, grid, here, entries, scratch)
            a = scratch("a", (batch, H, count, N), statistics)
            pairs = scratch("pairs", (H, count * N, batch), statistics)
            if parts.logits.logits:
                if queries.missing is not None:
                    pairs.fill_(-torch.inf)
                for chunk, index in queries.chunks:
                    q, k, _ = relative.project(parts.logits, chunk, kept)
                    pairs.index_copy_(1, index, relative.dots(q, k, statistics).mul_(recipe.scale))
                a.copy_(_from_pairs(pairs, count))
            else:
                a.zero_()
                if queries.missing is not None:
                    a.flatten(2).index_fill_(2, queries.missing, -torch.inf)
            flat, heads = a.flatten(0, 1), _head_major(here, H, statistics)
            for q, k in parts.dense_logits:
                query, key = heads[q][:, queries.tokens], heads[k]
                torch.baddbmm(flat, query, key.mT, alpha=recipe.scale, out=flat)
            highest = a.amax(-1, keepdim=True).clamp_min_(torch.finfo(statistics).min)
            total = a.sub_(highest).exp_().sum(-1, keepdim=True)
            a.div_(total.clamp_min(torch.finfo(statistics).tiny))  # a query may have no pair here
            lse[queries.tokens, samples] = total.log_().add_(highest).squeeze(-1).permute(2, 0, 1)
            for place, source in parts.dense_values:
                _add(outs[place][queries.tokens, samples], torch.bmm(flat, heads[source]))
            if parts.places:
                _to_pairs(a, pairs)
            sums = [_channel_major(outs[place][:, samples]) for place in parts.places]
            summed = Columns(dict(enumerate(sums)), grid, scratch, sums=True)
            for chunk, index in queries.chunks if parts.places else ():
                *_, v = relative.project(parts.values, chunk, kept)
                weight = torch.index_select(pairs, 1, index)
                for i, value in enumerate(v):
                    out = relative.times(value, weight, ("weighted", i)).flatten(0, 1)
                    relative.add_to_queries(summed, i, chunk, out)
            summed.finish()
            for place, out in zip(parts.places, sums, strict=True):
                outs[place][:, samples] = out.unflatten(0, (H, -1)).permute(2, 3, 0, 1)
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
        parts, (N, _, H), statistics, grid = parts_of(recipe), lse.shape, lse.dtype, schedule.grid
        grad_sources = [torch.zeros(s.shape, dtype=statistics, device=s.device) for s in sources]
        entries, scratch, saved = [Bank(bank) for bank in banks], Scratch(sources[0]), iter(kept)
        for samples, queries in steps(parts, schedule, sources, banks):
            here, batch = [source[:, samples] for source in sources], sources[0][:, samples].shape[1]
            count = queries.tokens.stop - queries.tokens.start
            relative = Relative(parts.relative, grid, here, entries, scratch)
            heads = _head_major(here, H, statistics)
            grad_heads = [
                g[:, queries.tokens] for g in _head_major([g[:, samples] for g in grads], H, statistics)
            ]
            p, grad_a = (
                _minus(t[queries.tokens, samples], scratch(name, (batch, H, count, N), statistics))
                for t, name in ((lse, "a"), (delta, "∂a"))
            )
            flat_p, flat_grad = p.flatten(0, 1), grad_a.flatten(0, 1)
            for q, k in parts.dense_logits:
                query, key = heads[q][:, queries.tokens], heads[k]
                torch.baddbmm(flat_p, query, key.mT, alpha=recipe.scale, out=flat_p)
            for place, source in parts.dense_values:
                torch.baddbmm(flat_grad, grad_heads[place], heads[source].mT, out=flat_grad)
            p_pairs, grad_pairs = (
                _to_pairs(t, scratch(name, (H, count * N, batch), statistics))
                for t, name in ((p, "pairs"), (grad_a, "∂pairs"))
            )
            g_columns = {i: _channel_major(grads[place][:, samples]) for i, place in enumerate(parts.places)}
            outs = Columns(g_columns, grid, Scratch(grads[0]))
            sums = relative.new_sums(statistics)
            summed = Columns(sums, grid, scratch, sums=True)
            q_k = [take(parts.logits, saved) for _ in queries.chunks] if recipe.keep else []
            values = [take(parts.values, saved) for _ in queries.chunks] if recipe.keep else []
            for number, (chunk, index) in enumerate(queries.chunks):
                if recipe.keep:
                    q, k, v = q_k[number][0], q_k[number][1], values[number][2]
                else:
                    q, k, v = relative.project(parts.relative, chunk, [])
                g = [at_queries(outs, i, chunk, batch).unflatten(0, (H, -1)) for i in range(len(v))]
                weight, grad_logit = (torch.index_select(t, 1, index) for t in (p_pairs, grad_pairs))
                if q:
                    weight.add_(relative.dots(q, k, statistics), alpha=recipe.scale)
                if v:
                    grad_logit.add_(relative.dots(g, v, statistics))
                weight.exp_()
                grad_logit.mul_(weight).mul_(recipe.scale)
                p_pairs.index_copy_(1, index, weight)
                grad_pairs.index_copy_(1, index, grad_logit)
                weight, grad_logit = weight.to(sources[0].dtype), grad_logit.to(sources[0].dtype)
                projected = (
                    [relative.times(t, grad_logit, ("∂q", i)) for i, t in enumerate(k)],
                    [relative.times(t, grad_logit, ("∂k", i)) for i, t in enumerate(q)],
                    [relative.times(t, weight, ("∂v", i)) for i, t in enumerate(g)],
                )
                relative.backpropagate(parts.relative, chunk, projected, summed)
            summed.finish()
            for source, columns in sums.items():
                grad_sources[source][:, samples] += columns.permute(1, 2, 0)
            for t, pairs in ((p, p_pairs), (grad_a, grad_pairs)):
                if queries.missing is not None:
                    pairs.index_fill_(1, queries.missing, 0)
                t.copy_(_from_pairs(pairs, count))
            for q, k in parts.dense_logits:
                query, key = heads[q][:, queries.tokens], heads[k]
                _add(grad_sources[q][queries.tokens, samples], torch.bmm(flat_grad, key))
                _add(grad_sources[k][:, samples], torch.bmm(flat_grad.mT, query))
            for place, source in parts.dense_values:
                _add(grad_sources[source][:, samples], torch.bmm(flat_p.mT, grad_heads[place]))
        return grad_sources, [bank.gradient() for bank in entries]


def _head_major(tensors: Sequence[Tensor], heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Each [N, B, D] or [N, B, H, E] as [B·H, N, E]."""
    four = (t.unflatten(2, (heads, -1)) if t.dim() == 3 else t for t in tensors)
    return [t.permute(1, 2, 0, 3).flatten(0, 1).to(dtype) for t in four]


def _channel_major(t_NBHE: Tensor) -> Tensor:
    """[N, B, H, E] as [H·E, N, B], contiguous."""
    return t_NBHE.flatten(2).permute(2, 0, 1).contiguous()


def _minus(t_IBH: Tensor, out_BHIN: Tensor) -> Tensor:
    """−t of each query, for all keys."""
    return out_BHIN.copy_(t_IBH.neg().permute(1, 2, 0).unsqueeze(-1).expand_as(out_BHIN))


def _to_pairs(t_BHIN: Tensor, pairs: Tensor) -> Tensor:
    """Copies into [H, I·N, B]."""
    pairs.unflatten(1, t_BHIN.shape[2:]).copy_(t_BHIN.permute(1, 2, 3, 0))
    return pairs


def _from_pairs(pairs: Tensor, queries: int) -> Tensor:
    """[H, I·N, B] as [B, H, I, N]."""
    return pairs.unflatten(1, (queries, -1)).permute(3, 0, 1, 2)


def _add(sums: Tensor, heads: Tensor) -> None:
    """Adds [B·H, N, E] to [N, B, D] or [N, B, H, E]."""
    sums = sums.unflatten(2, (-1, heads.shape[2])) if sums.dim() == 3 else sums
    sums.add_(heads.unflatten(0, sums.shape[1:3]).permute(2, 0, 1, 3))
