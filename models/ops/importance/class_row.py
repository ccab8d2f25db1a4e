"""The class token's weights: one row of the softmax, from the three bank entries of its own offsets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.ops.recipe import Operand, Recipe
from models.ops.walk.schedule import Schedule


def class_row(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor], lse: Tensor
) -> Tensor:
    """α_0j [N, B, H] of the pairs here, 0 for the others; `lse` is that of all pairs."""
    weights = torch.zeros_like(lse)
    for entry, keys in _blocks(schedule):
        rows = _Rows(recipe, sources, banks, entry, keys)
        weights[keys] = (rows.logits(lse.dtype) - lse[0]).exp()
    return weights


def add_class_row_gradients(
    recipe: Recipe,
    schedule: Schedule,
    sources: Sequence[Tensor],
    banks: Sequence[Tensor],
    weights: Tensor,
    grad: Tensor,
    grad_sources: Sequence[Tensor],
    grad_banks: Sequence[Tensor],
) -> None:
    """Adds the gradients through the pairs here, given the row [N, B, H] of all pairs and its gradient."""
    grad_logits = weights * (grad - (weights * grad).sum(0))
    for entry, keys in _blocks(schedule):
        with torch.enable_grad():
            rows = _Rows(recipe, sources, banks, entry, keys)
            logits = rows.logits(weights.dtype)
        leaves = [*rows.leaves.values()]
        grads = torch.autograd.grad(logits, leaves, grad_logits[keys])
        for (kind, index, start), own in zip(rows.leaves, grads, strict=True):
            if kind == "bank":
                grad_banks[index][entry].add_(own)
            else:
                grad_sources[index][start : start + len(own)].add_(own)


class _Rows:
    """The queries and keys of a block; `leaves` are the tensors that its gradient is taken by, each named by
    what it is part of, the number of that, and its first token."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Tensor],
        banks: Sequence[Tensor],
        entry: int,
        keys: slice,
    ) -> None:
        self._recipe, self._sources, self._banks = recipe, sources, banks
        self._entry, self._keys = entry, keys
        self.leaves: dict[tuple[str, int, int], Tensor] = {}

    def logits(self, dtype: torch.dtype) -> Tensor:
        """[n, B, H]"""
        pairs = ((self._rows(q, slice(0, 1)), self._rows(k, self._keys)) for q, k in self._recipe.logits)
        dots = [(q.to(dtype) * k.to(dtype)).sum(-1) for q, k in pairs]
        return self._recipe.scale * torch.stack(dots).sum(0)

    def _rows(self, operand: Operand, tokens: slice) -> Tensor:
        rows = self._leaf(("source", operand.source, tokens.start), self._sources[operand.source][tokens])
        if operand.bank is not None:
            matrix = self._leaf(("bank", operand.bank, 0), self._banks[operand.bank][self._entry])
            rows = rows @ matrix.to(rows.dtype)
        return rows.unflatten(-1, (self._recipe.heads, -1))

    def _leaf(self, name: tuple[str, int, int], value: Tensor) -> Tensor:
        if name not in self.leaves:
            self.leaves[name] = value.detach().requires_grad_(torch.is_grad_enabled())
        return self.leaves[name]


def _blocks(schedule: Schedule) -> Iterator[tuple[int, slice]]:
    """The bank entry and the keys of the blocks here whose query is the class token."""
    for block in schedule.special_blocks:
        if block.queries is None:
            yield block.entry, slice(0, 1) if block.keys is None else slice(1, None)
