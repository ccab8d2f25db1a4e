"""The matrix products of a chunk: runs of rows, each with the bank entry of its offset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models.ops.walk.chunks import Runs

ColumnRun = tuple[int, int, int, int]  # entry, first column of a token, first pair, length


class Bank:
    """A bank[K, C, D] during one pass over the pairs, and its gradient."""

    def __init__(self, bank: Tensor) -> None:
        self.width = bank.shape[2]
        self._bank = bank
        self._entries = bank.unbind(0)  # views are made once, not at every product
        self._transposed = bank.mT.unbind(0)
        self._gradient: tuple[Tensor, ...] | None = None
        self._unwritten: set[int] = set()

    def multiply(self, rows: Tensor, runs: Runs, batch: int, out: Tensor) -> None:
        """Multiplies rows[·B, C] by the entries of their runs, into the pairs' out[n·B, D]."""
        entries, cast = self._entries, rows.dtype != self._bank.dtype
        for entry, rows_run, out_run in _pieces(runs, batch, rows, out):
            weight = entries[entry].to(rows.dtype) if cast else entries[entry]
            torch.mm(rows_run, weight, out=out_run)

    def multiply_back(self, grad: Tensor, runs: Runs, batch: int, out: Tensor) -> None:
        """Multiplies the pairs' grad[n·B, D] by the transposed entries, and adds to their rows out[·B, C]."""
        entries, cast, same = self._transposed, grad.dtype != self._bank.dtype, out.dtype == grad.dtype
        for entry, out_run, grad_run in _pieces(runs, batch, out, grad):
            weight = entries[entry].to(grad.dtype) if cast else entries[entry]
            if same:
                out_run.addmm_(grad_run, weight)
            else:
                out_run.add_(torch.mm(grad_run, weight))

    def add_gradient(self, rows: Tensor, grad: Tensor, runs: Runs, batch: int) -> None:
        """Adds rowsᵀ·grad of each run, rows[·B, C] and the pairs' grad[n·B, D], to its entry's gradient."""
        for entry, rows_run, grad_run in _pieces(runs, batch, rows, grad):
            self._add_product(entry, rows_run.t(), grad_run)

    def multiply_columns(self, columns: Tensor, runs: Sequence[ColumnRun], batch: int, out: Tensor) -> None:
        """The same on columns[C, ·B], into the pairs' out[D, n·B]."""
        entries, cast = self._transposed, columns.dtype != self._bank.dtype
        for entry, row, pair, length in runs:
            weight = entries[entry].to(columns.dtype) if cast else entries[entry]
            own, size = columns.narrow(1, row * batch, length * batch), length * batch
            torch.mm(weight, own, out=out.narrow(1, pair * batch, size))

    def backpropagate_columns(
        self, columns: Tensor, grad: Tensor, runs: Sequence[ColumnRun], batch: int, grad_columns: Tensor
    ) -> None:
        """From the pairs' grad[D, n·B]: adds to the entries' gradients and to grad_columns[C, ·B]."""
        entries, cast = self._entries, columns.dtype != self._bank.dtype
        same = grad_columns.dtype == grad.dtype
        for entry, row, pair, length in runs:
            weight, start, size = entries[entry], row * batch, length * batch
            own, at_pairs = columns.narrow(1, start, size), grad.narrow(1, pair * batch, size)
            self._add_product(entry, own, at_pairs.t())
            weight, summed = weight.to(grad.dtype) if cast else weight, grad_columns.narrow(1, start, size)
            if same:
                summed.addmm_(weight, at_pairs)
            else:
                summed.add_(torch.mm(weight, at_pairs))

    def _add_product(self, entry: int, a: Tensor, b: Tensor) -> None:
        """Adds a·b to the entry's gradient."""
        if self._gradient is None:
            self._total = torch.empty_like(self._bank, memory_format=torch.contiguous_format)
            self._gradient = self._total.unbind(0)
            self._unwritten = set(range(len(self._gradient)))
        total, first = self._gradient[entry], entry in self._unwritten
        if a.dtype != total.dtype:
            total.copy_(torch.mm(a, b)) if first else total.add_(torch.mm(a, b))
        elif first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
        self._unwritten.discard(entry)

    def gradient(self) -> Tensor:
        """∂bank[K, C, D]; zero for an entry that no pair used."""
        if self._gradient is None:
            return torch.zeros_like(self._bank)
        if len(self._unwritten) == len(self._total):
            self._total.zero_()  # in one call
        else:
            for entry in self._unwritten:
                self._total[entry].zero_()
        self._unwritten.clear()
        return self._total


def _pieces(runs: Runs, batch: int, rows: Tensor, pairs: Tensor) -> Iterable[tuple[int, Tensor, Tensor]]:
    """Each run's entry, its rows [·B, …] and its pairs [n·B, …]."""
    if runs.only is not None:
        return ((runs.only, rows, pairs),)
    entries, starts, lengths = runs.pieces(batch)
    narrow = rows.narrow
    of_rows = [narrow(0, start, length) for start, length in zip(starts, lengths, strict=True)]
    return zip(entries, of_rows, torch.split_with_sizes(pairs, lengths), strict=True)
