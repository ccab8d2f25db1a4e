"""The mean weight that each token receives from all queries: column sums of the softmax, pair by pair.

r_j = Σ_i α_ij / N. Its gradient reaches the logits as that of attention over values g_j, g the gradient of
r, whose outputs t_i = Σ_j α_ij g_j have the gradient 1/N: ∂a_ij = α_ij (g_j − t_i) / N. So backward first
computes t, and then is the operator's own backward with g as one value more for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.ops.kernel_choice import choose_walk
from models.ops.recipe import Combine, Operand, Recipe
from models.ops.walk.interface import Walk
from models.ops.walk.operands import Operands, steps, view_all
from models.ops.walk.products import Bank
from models.ops.walk.rows import Rows
from models.ops.walk.schedule import Schedule
from models.ops.walk.stage import Scratch


def received(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor], lse: Tensor
) -> Tensor:
    """r[N, B, H] from the pairs here; `lse` is that of all pairs."""
    N, B, H = lse.shape
    own = replace(recipe, values=(Operand(len(sources)),), keep=False, compiled=False)
    sources = [*sources, sources[0].new_zeros((N, B, H))]  # values that nobody needs: only their gradient
    total, delta = torch.zeros_like(lse), torch.zeros_like(lse)
    grad_out = sources[0].new_full((N, B, H, 1), 1 / N)
    entries, scratch = [Bank(bank) for bank in banks], Scratch(sources[0])
    for samples, chunks in steps(own, schedule, sources, banks):
        state, tokens = (view_all(ts, samples, schedule) for ts in ((lse, delta, grad_out), sources))
        (sums,) = view_all((total,), samples, schedule)
        rows = Rows(tokens, scratch)
        for chunk in chunks:
            projected = Operands(own, chunk, tokens, rows, entries, scratch).project()
            weights = chunk.gradients(own, projected, state, scratch).v[0]  # α_ij / N
            chunk.add_rows("key", sums, chunk.fold("key", weights).squeeze(-1).to(sums.flat.dtype))
    return total


def with_received(
    recipe: Recipe,
    schedule: Schedule,
    combine: Combine,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
    delta: Tensor,
    grads: Sequence[Tensor],
    grad: Tensor,
) -> tuple[Walk, Recipe, list[Tensor], Tensor, list[Tensor]]:
    """What makes the operator's backward pass that of r as well, given its gradient[N, B, H]: the walk,
    recipe, sources, delta and output gradients to run it with. The last source is g: drop its gradient."""
    N = grad.shape[0]
    added = Operand(len(sources))
    grad = grad.to(sources[0].dtype)
    sources = [*sources, grad.contiguous()]
    attention = replace(recipe, values=(added,), keep=False, kernel="loop")
    walk = choose_walk(attention, schedule, sources, banks)
    lse, outs, _ = walk.forward(attention, schedule, sources, banks)
    _, (t_NBH1,) = combine.merge(lse, outs)
    both = replace(recipe, values=(*recipe.values, added), keep=False, kernel="loop")
    grad_t = sources[0].new_full((*grad.shape, 1), 1 / N)
    delta = delta + t_NBH1.squeeze(-1) / N
    return choose_walk(both, schedule, sources, banks), both, sources, delta, [*grads, grad_t]
