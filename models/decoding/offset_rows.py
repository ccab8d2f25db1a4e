"""The cached rows of Translution on a causal sequence.

A key or value is projected by the matrix of its distance to the query, and every new token moves all others
one further away. So what can be kept are the rows before the bank, and the projected rows whose distance
still uses the same entry. When the token at i comes, an entry whose least distance is d takes over the row
at i − d: one row per entry in use is projected again. That is every row in full Translution, some log N rows
with `share: log`, and none of an operand without a bank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoding.cache import Rows
from models.offsets import OffsetGrid
from models.ops.recipe import Operand, Recipe


class OffsetRows:
    """Attention of the newest token over all so far, for the operands of a recipe.

    banks    [K, C_s, D_b] of whole entries, in the order of the operands' numbers
    grid     a causal sequence of at most N tokens

    Kept per sequence: N rows of every key and value operand, and of every source with a bank.
    """

    def __init__(self, recipe: Recipe, grid: OffsetGrid, banks: Sequence[Tensor]) -> None:
        self._recipe, self._banks, self._num_tokens = recipe, banks, grid.num_tokens
        device = banks[0].device if banks else None
        entries = torch.tensor([grid.entry((d,)) for d in range(grid.num_tokens)], device=device)
        self._entries = entries  # of each distance; entry e is the e-th in order of distance
        self._least = torch.nonzero(entries.diff(prepend=entries.new_full((1,), -1)))[:, 0]
        kept = [key for _, key in recipe.logits] + list(recipe.values)
        self._operands = list(dict.fromkeys(kept))
        self._sources = {operand.source: Rows(grid.num_tokens) for operand in self._operands}
        self._projected = {
            operand: Rows(grid.num_tokens) for operand in self._operands if operand.bank is not None
        }

    def fill(self, sources_nBC: list[Tensor]) -> None:
        """Keep the first n tokens; their own outputs are computed elsewhere."""
        n = sources_nBC[0].shape[0]
        for number, rows in self._sources.items():
            rows.add(sources_nBC[number])
        for operand, projected in self._projected.items():
            bank, source = self._bank(operand), sources_nBC[operand.source]
            projected.add(source.new_empty(*source.shape[:2], bank.shape[2]))
            for entry in range(int(self._entries[min(n, self._num_tokens - 1)]) + 1):
                # Rows that the next token still finds at this entry, but for the one that it projects.
                least = int(self._least[entry])
                last = self._least[entry + 1] if entry + 1 < len(self._least) else self._num_tokens
                start, stop = max(0, n - int(last) + 1), n - least
                if start < stop:
                    projected.all[start:stop] = source[start:stop] @ bank[entry]

    def add(self, sources_1BC: list[Tensor]) -> list[Tensor]:
        """The outputs [1, B, D] of the next token, for each value segment."""
        for number, rows in self._sources.items():
            rows.add(sources_1BC[number])
        newest = next(iter(self._sources.values())).count - 1
        in_use = int(self._entries[newest]) + 1
        moved = newest - self._least[:in_use]
        for operand, projected in self._projected.items():
            source, bank = self._sources[operand.source].all, self._bank(operand)
            rows_EBD = torch.bmm(source[moved], bank[:in_use])
            projected.add(rows_EBD[:1])  # the newest is at distance 0; written again below
            projected.all[moved] = rows_EBD
        entry_M = self._entries[: newest + 1].flip(0)
        pairs = [
            self._heads(self._query(query, sources_1BC, entry_M, in_use)) * self._heads(self._rows(key))
            for query, key in self._recipe.logits
        ]  # [M, B, H, E] or [M, B, H, R]
        logits_MBH = torch.stack([pair.sum(-1) for pair in pairs]).sum(0)
        weights_MBH = (self._recipe.scale * logits_MBH).softmax(0)
        return [
            (weights_MBH.unsqueeze(-1) * self._heads(self._rows(value))).sum(0, keepdim=True).flatten(2)
            for value in self._recipe.values
        ]

    def _query(self, query: Operand, sources_1BC: list[Tensor], entry_M: Tensor, in_use: int) -> Tensor:
        """The newest token's query for each token, [M or 1, B, D]."""
        row_1BC = sources_1BC[query.source]
        return row_1BC if query.bank is None else (row_1BC @ self._bank(query)[:in_use])[entry_M]

    def _rows(self, operand: Operand) -> Tensor:
        return self._sources[operand.source].all if operand.bank is None else self._projected[operand].all

    def _bank(self, operand: Operand) -> Tensor:
        assert operand.bank is not None
        return self._banks[operand.bank]

    def _heads(self, rows_MBD: Tensor) -> Tensor:
        return rows_MBD.unflatten(2, (self._recipe.heads, -1))
