"""α-Translution's walk: dense attention with the relative part as a bias and as narrow values beside it.

Nothing of a pair but its weight and its logit's gradient per head goes through memory: dense queries, keys
and values meet in attention kernels, narrow ones are projected, used and forgotten in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from models.ops.cards import capability_at
from models.ops.device import device_type
from models.ops.fused.alpha import costs, dense, relative  # noqa: F401 (costs says what the operators cost)
from models.ops.fused.alpha.slices import MOST_NUMBERS, Slice, Sums, slices
from models.ops.fused.alpha.tiles import MOST_WIDTH, geometry
from models.ops.recipe import Operand, Recipe
from models.ops.walk.schedule import Schedule


class AlphaWalk:
    """Visits the pairs in about a dozen kernels each way, for bfloat16 or float32 sources.

    Forward: the narrow logits as a bias, attention, the narrow values. Backward recomputes logits and
    weights, and sums gradients in registers: without atomics, so with the same bits every time. A workspace
    too small for the pair tensors of all samples cuts the pass into slices. `recipe.keep` changes nothing:
    reading projected rows would take longer than projecting them again.
    """

    @staticmethod
    def why_not(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> str | None:
        """Why these kernels cannot serve this pass; None if they can."""
        return _why_not(recipe, schedule, sources, banks)

    @staticmethod
    def forward(
        recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        H, causal = recipe.heads, schedule.grid.causal
        parts = _parts(recipe, sources, banks)
        like = [parts.q[..., :H], parts.q, *([] if parts.value is None else [parts.value.rows])]
        sums, partial = Sums(like, overlap=False), not schedule.complete
        for cut in slices(recipe, schedule, parts.q):
            here = parts.of(cut.samples)
            bias = None
            if here.logits is not None:
                query, key = here.logits
                bias = relative.alpha_form(
                    query.rows, key.rows, query.bank, key.bank, cut.steps("query", key.rows), H,
                    recipe.scale, cut.first, cut.queries, cut.tables.pairs,
                )  # fmt: skip
            lse, out, weights = dense.alpha_attend(
                here.q, here.k, here.v, bias, cut.tables.exists(here.q.device), H, recipe.scale, causal,
                cut.first, cut.queries, here.value is not None, partial,
            )  # fmt: skip
            outs = [lse, out]
            if here.value is not None:
                narrow = [_query_sums(cut, weights, here.value, None, H, 1.0)]
                outs += relative.alpha_part_sums(narrow, out.dtype)
            for index, out in enumerate(outs):
                sums.add(index, out, cut.rows, cut.samples)
        lse, *outs = sums.finish()
        return lse, [out.unflatten(2, (H, -1)) for out in outs], []

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
        parts = _parts(recipe, sources, banks, [grad.flatten(2) for grad in grads])
        cuts = list(slices(recipe, schedule, parts.q))
        overlap = cuts[0].queries < schedule.grid.num_tokens
        sums = Sums(sources, overlap)
        bank_sums = Sums(banks, overlap=True)
        for cut in cuts:
            statistics = [t[:, cut.samples].contiguous() for t in (lse, delta)]
            here, partial = parts.of(cut.samples), overlap or not schedule.complete
            _backward(recipe, cut, here, statistics, schedule.grid.causal, partial, sums, bank_sums)
        grad_banks = [grad.to(bank.dtype) for grad, bank in zip(bank_sums.finish(), banks, strict=True)]
        return sums.finish(), grad_banks


class Narrow(NamedTuple):
    """A narrow operand: rows [N, B, H·R], times an entry of the bank [K, H·R, H·R] if there is one."""

    operand: Operand
    rows: Tensor
    bank: Tensor | None

    def of(self, samples: slice) -> Narrow:
        return self._replace(rows=self.rows[:, samples])


class _Parts(NamedTuple):
    """The dense q, k, v [N, B, H·E], the narrow query and key, the narrow value, and ∂out of each value."""

    q: Tensor
    k: Tensor
    v: Tensor
    logits: tuple[Narrow, Narrow] | None
    value: Narrow | None
    grads: list[Tensor]

    def of(self, samples: slice) -> _Parts:
        q, k, v = (rows[:, samples] for rows in (self.q, self.k, self.v))
        logits = self.logits and (self.logits[0].of(samples), self.logits[1].of(samples))
        value = self.value and self.value.of(samples)
        return _Parts(q, k, v, logits, value, [grad[:, samples] for grad in self.grads])


def _parts(
    recipe: Recipe, sources: Sequence[Tensor], banks: Sequence[Tensor], grads: Sequence[Tensor] = ()
) -> _Parts:
    """The operands of a pass in one dtype; rows need not follow each other, their numbers do."""
    rows = [source if source.stride(2) == 1 else source.contiguous() for source in sources]
    matrices = _cast(banks, rows[0].dtype)

    def narrow(operand: Operand) -> Narrow:
        bank = None if operand.bank is None else matrices[operand.bank]
        return Narrow(operand, rows[operand.source], bank)

    (q, k), *logits = recipe.logits
    v, *values = recipe.values
    return _Parts(
        *(rows[operand.source] for operand in (q, k, v)),
        logits=(narrow(logits[0][0]), narrow(logits[0][1])) if logits else None,
        value=narrow(values[0]) if values else None,
        grads=[grad.contiguous() for grad in grads],
    )


def _cast(banks: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Contiguous banks in this dtype; those in another are cast in one launch."""
    others = [bank for bank in banks if bank.dtype != dtype]
    cast = [bank.new_empty(bank.shape, dtype=dtype) for bank in others]
    if others:
        torch._foreach_copy_(cast, others)  # pyright: ignore[reportPrivateImportUsage]
    done = iter(cast)
    return [bank.contiguous() if bank.dtype == dtype else next(done) for bank in banks]


def _backward(
    recipe: Recipe,
    cut: Slice,
    here: _Parts,
    statistics: list[Tensor],
    causal: bool,
    partial: bool,
    sums: Sums,
    bank_sums: Sums,
) -> None:
    """Adds the gradients of one slice, given its lse and delta [N, B, H]; in float32 if `partial`."""
    narrow_sums: list[tuple[Operand, slice, Tensor]] = []
    H, scale, device = recipe.heads, recipe.scale, here.q.device
    exists = cut.tables.exists(device)
    value, narrow = here.value, None
    if value is not None:
        narrow = relative.alpha_form(
            here.grads[1], value.rows, None, value.bank, cut.steps("query", value.rows), H,
            1.0, cut.first, cut.queries, cut.tables.pairs,
        )  # fmt: skip
    weights, grad_logits = dense.alpha_scores(
        here.q, here.k, here.v, here.grads[0], *statistics, narrow, exists,
        H, scale, causal, cut.first, cut.queries, here.logits is None,
    )  # fmt: skip
    del narrow  # the workspace has no room for it beside P and dS
    if here.logits is not None:
        query, key = here.logits
        weights, grad_logits, *grad_banks = relative.alpha_logit_gradients(
            query.rows,
            key.rows,
            query.bank,
            key.bank,
            weights,
            grad_logits,
            cut.runs(device),
            H,
            scale,
            cut.first,
        )
        for narrow_, grad in zip((query, key), grad_banks, strict=True):
            if narrow_.operand.bank is not None:
                bank_sums.add(narrow_.operand.bank, _entry_sums(cut, grad), slice(None))
        grad = _query_sums(cut, grad_logits, key, query.bank, H, scale)
        narrow_sums.append((query.operand, cut.rows, grad))
        grad = _key_sums(cut, grad_logits, query.rows, query.bank, key, H, scale)
        narrow_sums.append((key.operand, slice(None), grad))
    if value is not None and value.operand.bank is not None:
        grad = relative.alpha_bank_sums(weights, here.grads[1], value.rows, cut.runs(device), H, cut.first)
        bank_sums.add(value.operand.bank, _entry_sums(cut, grad), slice(None))
        grad = _key_sums(cut, weights, here.grads[1], None, value, H, 1.0)
        narrow_sums.append((value.operand, slice(None), grad))
    parts = [grad for *_, grad in narrow_sums]
    summed = relative.alpha_part_sums(parts, torch.float32 if partial else here.q.dtype)
    for (operand, place, _), grad in zip(narrow_sums, summed, strict=True):
        sums.add(operand.source, grad, place, cut.samples)
    del narrow_sums, parts
    places = (cut.rows, slice(None), slice(None))
    grads = dense.alpha_dense_gradients(
        weights, grad_logits, here.q, here.k, here.grads[0], exists, H, scale, causal, cut.first, partial
    )
    operands = (*recipe.logits[0], recipe.values[0])
    for operand, grad, place in zip(operands, grads, places, strict=True):
        sums.add(operand.source, grad, place, cut.samples)


def _query_sums(
    cut: Slice, weights: Tensor, key: Narrow, out_bank: Tensor | None, heads: int, scale: float
) -> Tensor:
    """Σ over a query's pairs of weights ⊗ (key · W), times W^outᵀ if there is one → [queries, B, H·R]."""
    return relative.alpha_token_sums(
        weights, key.rows, key.bank, out_bank, cut.steps("query", key.rows), heads, scale, cut.first, True,
        cut.tables.pairs,
    )  # fmt: skip


def _key_sums(
    cut: Slice,
    weights: Tensor,
    query: Tensor,
    query_bank: Tensor | None,
    key: Narrow,
    heads: int,
    scale: float,
) -> Tensor:
    """Σ over a key's pairs of weights ⊗ (query · W), times the key's Wᵀ → [N, B, H·R]."""
    return relative.alpha_token_sums(
        weights, query, query_bank, key.bank, cut.steps("key", query), heads, scale, cut.first, False,
        cut.tables.pairs,
    )  # fmt: skip


def _entry_sums(cut: Slice, segments: Tensor) -> Tensor:
    """∂bank [K, H·R, H·R] from the sums over segments."""
    runs = cut.tables.runs(segments.device)
    return segments if runs.single else relative.alpha_segment_sums(segments, runs.bounds, torch.float32)


def _why_not(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    q, narrow = sources[0], [source for source in sources[3:]]
    if device_type(q.device) != "cuda":
        return f"the kernels need a CUDA device, the sources are on {q.device.type}"
    if (capability_at(q.device) or (8, 0)) < (8, 0):
        return "the kernels need a card of compute capability 8.0 or more"
    if q.dtype not in (torch.bfloat16, torch.float32):
        return f"sources of {q.dtype}: bfloat16 or float32 is needed"
    dense_operands = (*recipe.logits[0], recipe.values[0])
    if len(sources) < 4 or any(operand.bank is not None for operand in dense_operands):
        return "the recipe is not α-Translution's: dense logits and values first, then narrow ones"
    H, width = recipe.heads, narrow[0].shape[2]
    if any(rows.shape[2] != width for rows in narrow) or any(
        bank.shape[1:] != (width, width) for bank in banks
    ):
        return f"narrow sources and banks of several widths; all must have H·R = {width}"
    if geometry(H, width // H).width > MOST_WIDTH:
        return f"{H} heads of rank {width // H} take more than {MOST_WIDTH} columns"
    if q.dtype == torch.float32 and geometry(H, width // H).width > 64:
        return f"float32 sources and {width} narrow columns do not fit the chip; 64 do"
    if q.shape[2] // H > 128:
        return f"heads of {q.shape[2] // H} are wider than 128"
    if max(tensor.shape[0] * tensor.stride(0) for tensor in (*sources, *banks)) > MOST_NUMBERS:
        return f"a source or a bank has more than {MOST_NUMBERS} numbers"
    return None
