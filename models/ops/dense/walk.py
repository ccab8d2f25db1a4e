"""The walk for variants with a dense part: logits or values that no bank multiplies.

α-Translution is a dense attention path beside a narrow relative one; a variant with some shared projections
has dense logits or dense values. The dense parts are ordinary attention, a matrix product for all pairs of
a head. Only the relative parts visit the pairs block by block, with what they need of the others in
memory: logits and weights [B, H, I, N] for the products, [H, I·N, B] for the visit, of I queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.ops.dense.columns import Columns
from models.ops.dense.parts import Parts, Queries, parts_of, steps
from models.ops.dense.relative import Relative, at_queries, take
from models.ops.recipe import Recipe
from models.ops.walk.operands import operand_width
from models.ops.walk.products import Bank
from models.ops.walk.schedule import Schedule
from models.ops.walk.stage import Projected, Scratch


class DenseWalk:
    """See `Walk`."""

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        parts, (N, B), H = parts_of(recipe), sources[0].shape[:2], recipe.heads
        statistics = torch.promote_types(sources[0].dtype, torch.float32)
        widths = [operand_width(value, sources, banks) // H for value in recipe.values]
        lse = sources[0].new_empty((N, B, H), dtype=statistics)
        outs = [sources[0].new_zeros((N, B, H, width), dtype=statistics) for width in widths]
        entries, scratch = [Bank(bank) for bank in banks], Scratch(sources[0])
        kept: list[Tensor] = []
        for samples, queries in steps(parts, schedule, sources, banks):
            here = [source[:, samples] for source in sources]
            part = _Part(parts, schedule, queries, here, entries, scratch, statistics)
            a = part.logits(kept)
            lse[queries.tokens, samples] = _softmax(a).permute(2, 0, 1)
            part.add_values(a, [out[:, samples] for out in outs], kept)
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
        parts, saved = parts_of(recipe), iter(kept)
        grad_sources = [torch.zeros(s.shape, dtype=lse.dtype, device=s.device) for s in sources]
        entries, scratch = [Bank(bank) for bank in banks], Scratch(sources[0])
        for samples, queries in steps(parts, schedule, sources, banks):
            here, g, sums = ([t[:, samples] for t in ts] for ts in (sources, grads, grad_sources))
            part = _Part(parts, schedule, queries, here, entries, scratch, lse.dtype)
            part.backpropagate(lse[queries.tokens, samples], delta[queries.tokens, samples], g, sums, saved)
        return grad_sources, [bank.gradient() for bank in entries]


class _Part:
    """The work on some queries I of some samples B, whose sources are [N, B, C]."""

    def __init__(
        self,
        parts: Parts,
        schedule: Schedule,
        queries: Queries,
        sources: Sequence[Tensor],
        entries: Sequence[Bank],
        scratch: Scratch,
        statistics: torch.dtype,
    ) -> None:
        self._parts, self._grid, self._queries, self._scratch = parts, schedule.grid, queries, scratch
        self._statistics, self._dtype = statistics, sources[0].dtype
        self._heads, self._scale = parts.relative.heads, parts.relative.scale
        self._keep, (self._keys, self._batch) = parts.relative.keep, sources[0].shape[:2]
        self._count = queries.tokens.stop - queries.tokens.start
        self._relative = Relative(parts.relative, schedule.grid, sources, entries, scratch)
        self._dense = self._head_major(sources)

    def logits(self, kept: list[Tensor]) -> Tensor:
        """a[B, H, I, N], −inf for pairs that are not here."""
        a, missing = self._buffer("a"), self._queries.missing
        if self._parts.logits.logits:
            pairs = self._pair_buffer("pairs")
            if missing is not None:
                pairs.fill_(-torch.inf)
            for chunk, index in self._queries.chunks:
                q, k, _ = self._relative.project(self._parts.logits, chunk, kept)
                dots = self._relative.dots(q, k, self._statistics)
                pairs.index_copy_(1, index, dots.mul_(self._scale))
            a.copy_(_from_pairs(pairs, self._count))
        else:
            a.zero_()
            if missing is not None:
                a.flatten(2).index_fill_(2, missing, -torch.inf)
        self._add_dense_logits(a)
        return a

    def add_values(self, weights: Tensor, outs: Sequence[Tensor], kept: list[Tensor]) -> None:
        """Adds Σ α_ij v_ij to the queries' outs [N, B, H, E]."""
        for place, source in self._parts.dense_values:
            _add(outs[place][self._queries.tokens], torch.bmm(weights.flatten(0, 1), self._dense[source]))
        if not self._parts.places:
            return
        pairs = _to_pairs(weights, self._pair_buffer("pairs"))
        relative = [outs[place] for place in self._parts.places]
        totals = {i: _channel_major(out).zero_() for i, out in enumerate(relative)}
        sums = Columns(totals, self._grid, self._scratch, sums=True)
        for chunk, index in self._queries.chunks:
            *_, v = self._relative.project(self._parts.values, chunk, kept)
            weight = torch.index_select(pairs, 1, index)
            for i, value in enumerate(v):
                weighted = self._relative.times(value, weight, ("weighted", i))
                self._relative.add_to_queries(sums, i, chunk, weighted.flatten(0, 1))
        sums.finish()
        for i, out in enumerate(relative):
            out.add_(totals[i].unflatten(0, (self._heads, -1)).permute(2, 3, 0, 1))

    def backpropagate(
        self,
        lse: Tensor,
        delta: Tensor,
        grads: Sequence[Tensor],
        grad_sources: Sequence[Tensor],
        kept: Iterator[Tensor],
    ) -> None:
        """Adds to the gradients of the sources and of the banks. lse and delta are [I, B, H], the gradients
        of the outs [N, B, H, E]."""
        parts, tokens = self._parts, self._queries.tokens
        grad_outs = [g[:, tokens] for g in self._head_major(grads)]
        p, grad_a = _minus(lse, self._buffer("a")), _minus(delta, self._buffer("∂a"))
        self._add_dense_logits(p)
        for place, source in parts.dense_values:
            flat = grad_a.flatten(0, 1)
            torch.baddbmm(flat, grad_outs[place], self._dense[source].mT, out=flat)
        self._visit(p, grad_a, [grads[place] for place in parts.places], grad_sources, kept)
        p, grad_a = p.flatten(0, 1), grad_a.flatten(0, 1)
        for q, k in parts.dense_logits:
            _add(grad_sources[q][tokens], torch.bmm(grad_a, self._dense[k]))
            _add(grad_sources[k], torch.bmm(grad_a.mT, self._dense[q][:, tokens]))
        for place, source in parts.dense_values:
            _add(grad_sources[source], torch.bmm(p.mT, grad_outs[place]))

    def _visit(
        self,
        a: Tensor,
        grad_weight: Tensor,
        grads: Sequence[Tensor],
        grad_sources: Sequence[Tensor],
        kept: Iterator[Tensor],
    ) -> None:
        """Backpropagates through the relative parts, and makes weights and gradients of logits [B, H, I, N]
        of what is given: the dense parts of a, less lse, and of the weights' gradients, less delta."""
        parts, relative, H, dtype = self._parts, self._relative, self._heads, self._statistics
        pairs = _to_pairs(a, self._pair_buffer("pairs"))
        grad_pairs = _to_pairs(grad_weight, self._pair_buffer("∂pairs"))
        outs = Columns({i: _channel_major(g) for i, g in enumerate(grads)}, self._grid, Scratch(a))
        totals = relative.new_sums(dtype)
        sums = Columns(totals, self._grid, self._scratch, sums=True)
        for (chunk, index), (q, k, v) in zip(self._queries.chunks, self._operands(kept), strict=True):
            g = [at_queries(outs, i, chunk, self._batch).unflatten(0, (H, -1)) for i in range(len(v))]
            weight, grad_logit = (torch.index_select(t, 1, index) for t in (pairs, grad_pairs))
            if q:
                weight.add_(relative.dots(q, k, dtype), alpha=self._scale)
            if v:
                grad_logit.add_(relative.dots(g, v, dtype))
            weight.exp_()
            grad_logit.mul_(weight).mul_(self._scale)
            pairs.index_copy_(1, index, weight)
            grad_pairs.index_copy_(1, index, grad_logit)
            weight, grad_logit = weight.to(self._dtype), grad_logit.to(self._dtype)
            gradients = Projected(
                [relative.times(t, grad_logit, ("∂q", i)) for i, t in enumerate(k)],
                [relative.times(t, grad_logit, ("∂k", i)) for i, t in enumerate(q)],
                [relative.times(t, weight, ("∂v", i)) for i, t in enumerate(g)],
            )
            relative.backpropagate(parts.relative, chunk, gradients, sums)
        sums.finish()
        for source, columns in totals.items():
            grad_sources[source].add_(columns.permute(1, 2, 0))
        for t, of_pairs in ((a, pairs), (grad_weight, grad_pairs)):
            if self._queries.missing is not None:
                of_pairs.index_fill_(1, self._queries.missing, 0)
            t.copy_(_from_pairs(of_pairs, self._count))

    def _operands(self, kept: Iterator[Tensor]) -> Iterator[Projected]:
        """q, k and v of each chunk, kept or projected again."""
        if not self._keep:
            for chunk, _ in self._queries.chunks:
                yield self._relative.project(self._parts.relative, chunk, [])
            return
        logits = [take(self._parts.logits, kept) for _ in self._queries.chunks]
        values = [take(self._parts.values, kept) for _ in self._queries.chunks]
        for (q, k, _), (*_, v) in zip(logits, values, strict=True):
            yield Projected(q, k, v)

    def _add_dense_logits(self, a: Tensor) -> None:
        flat = a.flatten(0, 1)
        for q, k in self._parts.dense_logits:
            query, key = self._dense[q][:, self._queries.tokens], self._dense[k]
            torch.baddbmm(flat, query, key.mT, alpha=self._scale, out=flat)

    def _head_major(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each [N, B, D] or [N, B, H, E] as [B·H, N, E] in the statistics' dtype."""
        four = (t.unflatten(2, (self._heads, -1)) if t.dim() == 3 else t for t in tensors)
        return [t.permute(1, 2, 0, 3).flatten(0, 1).to(self._statistics) for t in four]

    def _buffer(self, name: str) -> Tensor:
        return self._scratch(name, (self._batch, self._heads, self._count, self._keys), self._statistics)

    def _pair_buffer(self, name: str) -> Tensor:
        return self._scratch(name, (self._heads, self._count * self._keys, self._batch), self._statistics)


def _channel_major(t_NBHE: Tensor) -> Tensor:
    """[N, B, H, E] as [H·E, N, B], contiguous."""
    return t_NBHE.flatten(2).permute(2, 0, 1).contiguous()


def _softmax(a_BHIN: Tensor) -> Tensor:
    """Softmax over the keys, in place; a query may have none here. Returns the log-sum-exp [B, H, I]."""
    highest = a_BHIN.amax(-1, keepdim=True).clamp_min_(torch.finfo(a_BHIN.dtype).min)
    total = a_BHIN.sub_(highest).exp_().sum(-1, keepdim=True)
    a_BHIN.div_(total.clamp_min(torch.finfo(a_BHIN.dtype).tiny))
    return total.log_().add_(highest).squeeze(-1)


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
