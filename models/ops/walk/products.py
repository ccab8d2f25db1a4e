"""The matrix products of a chunk: runs of rows, each with the bank entry of its offset."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.ops.walk.schedule import Runs


class Bank:
    """A bank[K, C, D] during one pass over the pairs, and its gradient."""

    def __init__(self, bank: Tensor) -> None:
        self.width = bank.shape[2]
        self._bank = bank
        self._entries = bank.unbind(0)  # views are made once, not at every product
        self._gradient: tuple[Tensor, ...] | None = None
        self._unwritten: set[int] = set()

    def multiply(self, rows: Tensor, runs: Runs, batch: int, out: Tensor) -> None:
        """Multiplies rows[n·B, C] by the entries of their runs, into out[n·B, D]."""
        for entry, rows_run, out_run in _pieces(runs, batch, rows, out):
            torch.mm(rows_run, _cast(self._entries[entry], rows), out=out_run)

    def multiply_back(self, grad: Tensor, runs: Runs, batch: int, out: Tensor) -> None:
        """Multiplies grad[n·B, D] by the transposed entries, and adds to out[n·B, C]."""
        for entry, grad_run, out_run in _pieces(runs, batch, grad, out):
            weight = _cast(self._entries[entry], grad).t()
            if out.dtype == grad.dtype:
                out_run.addmm_(grad_run, weight)
            else:
                out_run.add_(torch.mm(grad_run, weight))

    def add_gradient(self, rows: Tensor, grad: Tensor, runs: Runs, batch: int) -> None:
        """Adds rowsᵀ·grad of each run, rows[n·B, C] and grad[n·B, D], to its entry's gradient."""
        if self._gradient is None:
            self._total = torch.empty_like(self._bank, memory_format=torch.contiguous_format)
            self._gradient = self._total.unbind(0)
            self._unwritten = set(range(len(self._gradient)))
        for entry, rows_run, grad_run in _pieces(runs, batch, rows, grad):
            total, first = self._gradient[entry], entry in self._unwritten
            if rows.dtype != total.dtype:
                product = torch.mm(rows_run.t(), grad_run)
                total.copy_(product) if first else total.add_(product)
            elif first:
                torch.mm(rows_run.t(), grad_run, out=total)
            else:
                total.addmm_(rows_run.t(), grad_run)
            self._unwritten.discard(entry)

    def gradient(self) -> Tensor:
        """∂bank[K, C, D]; zero for an entry that no pair used."""
        if self._gradient is None:
            return torch.zeros_like(self._bank)
        self._zero_unwritten()
        return self._total

    def _zero_unwritten(self) -> None:
        if len(self._unwritten) == len(self._total):
            self._total.zero_()  # in one call
        else:
            for entry in self._unwritten:
                self._total[entry].zero_()
        self._unwritten.clear()


def _pieces(runs: Runs, batch: int, a: Tensor, b: Tensor) -> Iterable[tuple[int, Tensor, Tensor]]:
    """Each run's entry and its rows of two tensors [n·B, …]."""
    if runs.only is not None:
        return ((runs.only, a, b),)
    return ((entry, a[run], b[run]) for entry, run in runs.slices(batch))


def _cast(weight: Tensor, like: Tensor) -> Tensor:
    return weight if weight.dtype == like.dtype else weight.to(like.dtype)
