"""The operands of a chunk of pairs: projects them, and backpropagates through the projections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from models.ops.device import device_type
from models.ops.recipe import Operand, Recipe, workspace_bytes
from models.ops.walk.chunks import Chunk
from models.ops.walk.products import Bank
from models.ops.walk.rows import RowGradients, Rows, Side, Tokens, view_tokens
from models.ops.walk.schedule import Schedule
from models.ops.walk.stage import Projected, Scratch


class Operands:
    """Projects the operands of one chunk, and backpropagates through the projections."""

    def __init__(
        self,
        recipe: Recipe,
        chunk: Chunk,
        sources: list[Tokens],
        rows: Rows,
        banks: Sequence[Bank],
        scratch: Scratch,
    ) -> None:
        self._recipe, self._chunk, self._sources, self._rows = recipe, chunk, sources, rows
        self._banks, self._scratch = banks, scratch
        self._batch = sources[0].tail[0]

    def project(self, fresh: bool = False) -> Projected:
        """q, k of every logit segment and v of every value segment, [*pair_shape, B, H, E]; in new memory
        if `fresh`, else in the scratch."""
        return Projected(
            [
                self._project(q, "query", None if fresh else ("q", i))
                for i, (q, _) in enumerate(self._recipe.logits)
            ],
            [
                self._project(k, "key", None if fresh else ("k", i))
                for i, (_, k) in enumerate(self._recipe.logits)
            ],
            [self._project(v, "key", None if fresh else ("v", i)) for i, v in enumerate(self._recipe.values)],
        )

    def backpropagate(
        self,
        grads: Projected,
        grad_sources: list[Tokens],
        grad_rows: RowGradients,
    ) -> None:
        """Adds the operands' gradients [*pair_shape, B, H, E] to those of their sources and banks."""
        operands: list[tuple[Operand, Side, Tensor]] = [
            *((q, "query", g) for (q, _), g in zip(self._recipe.logits, grads.q, strict=True)),
            *((k, "key", g) for (_, k), g in zip(self._recipe.logits, grads.k, strict=True)),
            *((v, "key", g) for v, g in zip(self._recipe.values, grads.v, strict=True)),
        ]
        products: dict[tuple[int, Side], list[tuple[int, Tensor]]] = {}
        for operand, side, grad in operands:
            grad = self._chunk.fold(side, grad)
            width = grad.shape[-2] * grad.shape[-1]
            if operand.bank is None:
                self._chunk.add_rows(side, grad_sources[operand.source], grad.view(*grad.shape[:-2], width))
            else:
                products.setdefault((operand.source, side), []).append((operand.bank, grad.view(-1, width)))
        for (source, side), of_banks in products.items():
            part, runs = self._chunk.parts[side], self._chunk.runs[side]
            rows, grad_here = self._rows.read(source, side, part), grad_rows.at(source, side, part)
            for bank, grad in of_banks:
                self._banks[bank].add_gradient(rows, grad, runs, self._batch)
                self._banks[bank].multiply_back(grad, runs, self._batch, grad_here)

    def _project(self, operand: Operand, side: Side, place: object) -> Tensor:
        heads = self._recipe.heads
        if operand.bank is None:
            rows = self._chunk.rows(side, self._sources[operand.source])
            return rows.view(*rows.shape[:-1], heads, -1)
        rows = self._rows.read(operand.source, side, self._chunk.parts[side])
        bank = self._banks[operand.bank]
        shape = (*self._chunk.shape[side], self._batch, heads, bank.width // heads)
        out = rows.new_empty(shape) if place is None else self._scratch(place, shape)
        bank.multiply(rows, self._chunk.runs[side], self._batch, out.view(-1, bank.width))
        return out


def segments(recipe: Recipe, kept: Iterator[Tensor]) -> Projected:
    """The next chunk's q, k and v."""
    logits, values = len(recipe.logits), len(recipe.values)
    return Projected(*(list(islice(kept, count)) for count in (logits, logits, values)))


def view_all(tensors: Sequence[Tensor], samples: slice, schedule: Schedule) -> list[Tokens]:
    return [view_tokens(t[:, samples], schedule.grid) for t in tensors]


def steps(
    recipe: Recipe, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> Iterator[tuple[slice, Sequence[Chunk]]]:
    """All chunks, for as many samples at a time as fit the workspace."""
    batch, device = sources[0].shape[1], sources[0].device
    bytes_of_pair = pair_bytes(recipe, sources, banks)
    workspace = workspace_bytes(recipe.workspace, device_type(device))
    step = schedule.batch_slice(batch, bytes_of_pair, workspace)
    for start in range(0, batch, step):
        samples = slice(start, min(start + step, batch))
        chunks = schedule.chunks(samples.stop - start, bytes_of_pair, workspace, device)
        yield samples, chunks


def pair_bytes(recipe: Recipe, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> int:
    """Bytes of a pair in backward, the larger pass: rows, operands and their gradients; gradients of rows,
    and sums, are in the statistics' dtype."""
    sides = [(o, side) for pair in recipe.logits for o, side in zip(pair, ("query", "key"), strict=True)]
    sides += [(o, "key") for o in recipe.values]
    read = {(o.source, side) for o, side in sides}
    rows = sum(sources[source].shape[2] for source, _ in read)
    widths = [operand_width(o, sources, banks) for o, _ in sides]
    product = sources[0].element_size()
    statistics = torch.promote_types(sources[0].dtype, torch.float32).itemsize
    summed = 3 * max(widths) * statistics if statistics != product else 0
    return rows * (product + statistics) + 2 * sum(widths) * product + summed


def operand_width(operand: Operand, sources: Sequence[Tensor], banks: Sequence[Tensor]) -> int:
    return (sources[operand.source] if operand.bank is None else banks[operand.bank]).shape[2]
