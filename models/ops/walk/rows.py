"""Reads rows of token-major tensors for matrix products, and adds their gradients back.

Products want contiguous rows. Blocks whose offsets differ along the first grid dimension only read the
same *strip*: the whole of that dimension, one range of each other. A strip is copied once for all of
them (not at all for a sequence of a whole batch), and a block's rows are a view of the copy. Gradients
work the same way: products add to them in place. A chunk of whole classes reads by an index table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from models.offsets import OffsetGrid
from models.ops.walk.stage import Scratch

Side = Literal["query", "key"]
Rectangle = tuple[tuple[int, int], ...]


class Tokens(NamedTuple):
    """Views of a token-major tensor [N, B, …].

    grid          [*shape, B, …]
    flat          the same, [N, B, …] without the class token
    class_token   [1, …, 1, B, …], with the grid's number of dimensions; meaningless without a class token
    """

    grid: Tensor
    flat: Tensor
    class_token: Tensor
    tail: tuple[int, ...]  # B, …
    strides: tuple[int, ...]  # of the grid
    start: int

    def rectangle(self, corner: tuple[int, ...], extent: tuple[int, ...]) -> Tensor:
        """The view [*extent, B, …] of the grid at `corner`; one call where indexing takes three."""
        start = self.start
        for place, stride in zip(corner, self.strides, strict=False):
            start += place * stride
        return self.grid.as_strided(extent + self.tail, self.strides, start)


def view_tokens(t_NB: Tensor, grid: OffsetGrid) -> Tokens:
    flat, tail = t_NB[int(grid.class_token) :], tuple(t_NB.shape[1:])
    token = t_NB[:1].view((1,) * len(grid.shape) + tail)
    whole = flat.unflatten(0, grid.shape)
    return Tokens(whole, flat, token, tail, whole.stride(), int(whole.storage_offset()))


class Gather(Protocol):
    """Some tokens in some order."""

    @property
    def num_tokens(self) -> int: ...

    def view(self, tokens: Tokens) -> Tensor | None:
        """The tokens as a view [n·B, …], if they are contiguous in this order; else None."""
        ...

    def copy(self, tokens: Tokens, out: Tensor) -> None:
        """Copies the tokens into out [n, B, …]."""
        ...

    def add(self, tokens: Tokens, rows: Tensor) -> None:
        """Adds rows [n, B, …] to the tokens they were read from."""
        ...


class Strip(NamedTuple):
    """A rectangle that spans the grid's first dimension; without sides, the class token."""

    corner: tuple[int, ...]
    extent: tuple[int, ...]

    @staticmethod
    def around(rectangle: Rectangle | None, shape: tuple[int, ...]) -> Strip:
        """The strip of a grid of this shape that contains a rectangle; None is the class token."""
        sides = () if rectangle is None else ((0, shape[0]), *rectangle[1:])
        return Strip(tuple(start for start, _ in sides), tuple(stop - start for start, stop in sides))

    @property
    def num_tokens(self) -> int:
        return math.prod(self.extent)

    def view(self, tokens: Tokens) -> Tensor | None:
        rows = self._rows(tokens)
        return rows.view(-1, *tokens.tail[1:]) if rows.is_contiguous() else None

    def copy(self, tokens: Tokens, out: Tensor) -> None:
        rows = self._rows(tokens)
        out.view(rows.shape).copy_(rows)

    def add(self, tokens: Tokens, rows: Tensor) -> None:
        own = self._rows(tokens)
        own.add_(rows.view(own.shape))

    def _rows(self, tokens: Tokens) -> Tensor:
        return tokens.rectangle(self.corner, self.extent) if self.corner else tokens.class_token


class Index:
    """Tokens by index, `rows` [n].

    layers     [L, N]: where each token is among the rows, at most once in a layer; n where it is not
    complete   whether it is once in every layer
    """

    def __init__(self, rows: Tensor, layers: Tensor, complete: bool) -> None:
        self.rows, self.num_tokens = rows, len(rows)
        self.layers, self._complete = layers, complete

    def view(self, tokens: Tokens) -> Tensor | None:
        return None

    def copy(self, tokens: Tokens, out: Tensor) -> None:
        torch.index_select(tokens.flat, 0, self.rows, out=out)

    def add(self, tokens: Tokens, rows: Tensor) -> None:
        if not self._complete:
            rows = torch.cat([rows, rows.new_zeros((1, *rows.shape[1:]))])
        own = rows.index_select(0, self.layers.flatten()).unflatten(0, self.layers.shape)
        tokens.flat.add_(own.sum(0, dtype=tokens.flat.dtype))  # in a fixed order, unlike index_add_ on CUDA


class Part(NamedTuple):
    """The tokens [start, stop) of those that `gather` reads."""

    gather: Gather
    start: int
    stop: int

    def of(self, rows: Tensor, batch: int) -> Tensor:
        """The rows of these tokens among [gather.num_tokens·B, …]."""
        return rows.narrow(0, self.start * batch, (self.stop - self.start) * batch)


class Rows:
    """Reads rows [n·B, C] of the sources during one pass over the pairs.

    Keeps the last gather of each source and side.
    """

    def __init__(self, sources: Sequence[Tokens], scratch: Scratch) -> None:
        self._sources, self._scratch = sources, scratch
        self._held: dict[tuple[int, Side], tuple[Gather, Tensor]] = {}

    def read(self, source: int, side: Side, part: Part) -> Tensor:
        """Rows of one side of the pairs; read only."""
        tokens, (gather, rows) = self._sources[source], self._held.get((source, side), (None, None))
        if rows is None or gather != part.gather:
            rows = part.gather.view(tokens)
            if rows is None:
                copy = self._scratch(("rows", source, side), (part.gather.num_tokens, *tokens.tail))
                part.gather.copy(tokens, copy)
                rows = copy.flatten(0, 1)
            self._held[source, side] = part.gather, rows
        return part.of(rows, tokens.tail[0])


class RowGradients:
    """Accumulates the gradients of these rows, in the dtype of the sources' gradients.

    Rows that are a view accumulate in the sources' gradients directly; others in a buffer, which is
    added to them when the next gather begins, or by `finish`.
    """

    def __init__(self, gradients: Sequence[Tokens], scratch: Scratch) -> None:
        self._gradients, self._scratch = gradients, scratch
        self._held: dict[tuple[int, Side], _Held] = {}

    def at(self, source: int, side: Side, part: Part) -> Tensor:
        """Accumulator for the gradient of `Rows.read(...)`."""
        held = self._held.get((source, side))
        tokens = self._gradients[source]
        if held is None or held.gather != part.gather:
            self._add_back(source, side)
            rows, buffer = part.gather.view(tokens), None
            if rows is None:
                shape = (part.gather.num_tokens, *tokens.tail)
                buffer = self._scratch(("∂rows", source, side), shape, tokens.flat.dtype).zero_()
                rows = buffer.flatten(0, 1)
            held = self._held[source, side] = _Held(part.gather, rows, buffer)
        return part.of(held.rows, tokens.tail[0])

    def finish(self) -> None:
        for source, side in list(self._held):
            self._add_back(source, side)

    def _add_back(self, source: int, side: Side) -> None:
        held = self._held.pop((source, side), None)
        if held is not None and held.buffer is not None:
            held.gather.add(self._gradients[source], held.buffer)


class _Held(NamedTuple):
    gather: Gather
    rows: Tensor  # [n·B, C]
    buffer: Tensor | None  # [n, B, C], the same memory, unless it is the sources' gradient itself
