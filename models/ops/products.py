"""The matrix products of a chunk: runs of rows, each with the bank entry of its offset.

On CUDA, in a dtype the grouped kernel takes, all runs of a chunk are one grouped product; elsewhere
they are a loop of plain products (on the CPU `grouped_mm` computes float32 at reduced precision).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from models.ops.plan import Runs


def multiply(rows: Tensor, bank: Tensor, runs: Runs, batch: int, out: Tensor) -> None:
    """rows[n·B, C] by bank[K, C, D], each run by its entry, into out[n·B, D]."""
    if _grouped(rows, runs):
        entries, stops = runs.groups(batch, rows.device)
        out.copy_(grouped_mm(rows, bank[entries].to(rows.dtype), offs=stops))
        return
    for entry, start, stop in runs.spans:
        run = slice(start * batch, stop * batch)
        torch.mm(rows[run], bank[entry].to(rows.dtype), out=out[run])


def multiply_back(grad: Tensor, bank: Tensor, runs: Runs, batch: int, out: Tensor, add: bool) -> None:
    """grad[n·B, D] by the transposed entries, into out[n·B, C], or added to it."""
    if _grouped(grad, runs):
        entries, stops = runs.groups(batch, grad.device)
        product = grouped_mm(grad, bank[entries].to(grad.dtype).mT, offs=stops)
        out.add_(product) if add else out.copy_(product)
        return
    for entry, start, stop in runs.spans:
        run, weight = slice(start * batch, stop * batch), bank[entry].to(grad.dtype).t()
        if add:
            out[run].addmm_(grad[run], weight)
        else:
            torch.mm(grad[run], weight, out=out[run])


class BankGradient:
    """Collects ∂bank[K, C, D]; an entry's first product is written, later ones are added."""

    def __init__(self, bank: Tensor) -> None:
        self._total = torch.empty_like(bank, memory_format=torch.contiguous_format)
        self._unwritten = set(range(bank.shape[0]))

    def add(self, rows: Tensor, grad: Tensor, runs: Runs, batch: int) -> None:
        """Adds rowsᵀ·grad of every run, rows[n·B, C], grad[n·B, D], to its entry."""
        if _grouped(rows, runs):
            entries, stops = runs.groups(batch, rows.device)
            products = grouped_mm(rows.t(), grad, offs=stops)
            self._zero([span.entry for span in runs.spans if span.entry in self._unwritten])
            self._total.index_add_(0, entries, products.to(self._total.dtype))
            return
        for entry, start, stop in runs.spans:
            run = slice(start * batch, stop * batch)
            total = self._total[entry]
            if rows.dtype != total.dtype:
                product = torch.mm(rows[run].t(), grad[run])
                total.copy_(product) if entry in self._unwritten else total.add_(product)
            elif entry in self._unwritten:
                torch.mm(rows[run].t(), grad[run], out=total)
            else:
                total.addmm_(rows[run].t(), grad[run])
            self._unwritten.discard(entry)

    def _zero(self, entries: list[int]) -> None:
        for entry in entries:
            self._total[entry].zero_()
        self._unwritten.difference_update(entries)

    def total(self) -> Tensor:
        self._zero(list(self._unwritten))
        return self._total


def _grouped(rows: Tensor, runs: Runs) -> bool:
    return rows.is_cuda and rows.dtype == torch.bfloat16 and len(runs.spans) > 1
