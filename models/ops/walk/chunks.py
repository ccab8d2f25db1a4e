"""The steps of a walk: chunks of pairs, and the token rows that they read and multiply.

A `BlockChunk` is one block: its queries and keys are rectangles of the grid, so plain strided views; best
when one block fills the caches. A `ClassChunk` is a run of whole residue classes, read through index
tables; best when blocks are small or the device wants few, large calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid
from models.ops.recipe import Recipe
from models.ops.walk.rows import Index, Part, Side, Strip, Tokens
from models.ops.walk.stage import Projected, Scratch, stage


class Span(NamedTuple):
    """The pairs [start, stop) of a chunk that one bank entry multiplies, and the first of their rows among
    those that the chunk reads."""

    entry: int
    start: int
    stop: int
    row: int


class Runs:
    """The runs of rows on one side of a chunk, each multiplied by one bank entry."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self.pieces = lru_cache(maxsize=4)(self._pieces)
        self.only = self.spans[0].entry if len(self.spans) == 1 and self.spans[0].row == 0 else None

    def _pieces(self, batch: int) -> tuple[list[int], list[int], list[int]]:
        """The entry, the first row and the number of rows of each run, for a loop of products."""
        return (
            [span.entry for span in self.spans],
            [span.row * batch for span in self.spans],
            [(span.stop - span.start) * batch for span in self.spans],
        )


class Chunk(Protocol):
    """Some of the pairs.

    shape     of the tokens on either side
    parts     the tokens that either side reads
    runs      the runs of those tokens that one bank entry multiplies
    """

    shape: dict[Side, tuple[int, ...]]
    parts: dict[Side, Part]
    runs: dict[Side, Runs]

    def rows(self, side: Side, tokens: Tokens) -> Tensor:
        """The tokens on one side of the pairs, [*shape, B, …]."""
        ...

    def add_rows(self, side: Side, tokens: Tokens, rows: Tensor) -> None:
        """Adds rows to the tokens they were read from."""
        ...

    def fold(self, side: Side, pairs: Tensor) -> Tensor:
        """Sums pair values over the pairs that share one row of this side."""
        ...

    def queries(self, tokens: Tokens) -> Tensor:
        """A writable view [*queries, B, …] of the tokens that are queries here."""
        ...

    def attend(self, recipe: Recipe, projected: Projected, state: list[Tokens], scratch: Scratch) -> None:
        """Merges the pairs into the running softmax of their queries: lse, and a normalised out for each
        value segment. q, k and v are [*shape, B, H, E]."""
        ...

    def gradients(
        self, recipe: Recipe, projected: Projected, state: list[Tokens], scratch: Scratch
    ) -> Projected:
        """∂q, ∂k, ∂v of each segment; the state is the final lse, delta and each ∂out."""
        ...


class PairChunk:
    """A chunk whose pairs are combined one by one, element-wise."""

    uniform: bool

    def attend(
        self: Any, recipe: Recipe, projected: Projected, state: list[Tokens], scratch: Scratch
    ) -> None:
        compute, (lse, *outs) = stage(recipe.compiled and self.uniform), map(self.queries, state)
        q, k, v = projected
        a = compute.logits(q, k, recipe.scale, lse.dtype, scratch=scratch)
        layers = [self.layers(value, 0.0) for value in v]
        compute.merge(lse, *outs, logits=self.layers(a, -torch.inf), values=layers)

    def gradients(
        self: Any, recipe: Recipe, projected: Projected, state: list[Tokens], scratch: Scratch
    ) -> Projected:
        compute, at_pairs = stage(recipe.compiled and self.uniform), [self.rows("query", t) for t in state]
        grads = compute.gradients(*projected, *at_pairs, scale=recipe.scale, scratch=scratch)
        return Projected(*grads)


class BlockChunk(PairChunk):
    """One block: pairs [*rectangle, B, …]; a class token's side is [1, …, 1, B, …]."""

    uniform = False

    def __init__(self, block: Block, grid: OffsetGrid) -> None:
        self.block = block
        self._rank = len(grid.shape)
        self._many_keys = block.queries is None and block.keys is not None
        self._many_queries = block.keys is None and block.queries is not None
        self._corner: dict[Side, tuple[int, ...] | None] = {}
        self.pairs = block.pairs
        self.shape, self.parts, self.runs = {}, {}, {}
        sides: tuple[Side, Side] = ("query", "key")
        for side, rectangle, rows in zip(sides, (block.queries, block.keys), block.products, strict=True):
            self._corner[side] = None if rectangle is None else tuple(start for start, _ in rectangle)
            self.shape[side] = tuple(stop - start for start, stop in rectangle or ((0, 1),) * self._rank)
            strip = Strip.around(rectangle, grid.shape)
            start = rectangle[0][0] * math.prod(self.shape[side][1:]) if rectangle else 0
            self.parts[side] = Part(strip, start, start + rows)
            self.runs[side] = Runs([Span(block.entry, 0, rows, 0)])

    def rows(self, side: Side, tokens: Tokens) -> Tensor:
        corner = self._corner[side]
        return tokens.class_token if corner is None else tokens.rectangle(corner, self.shape[side])

    def add_rows(self, side: Side, tokens: Tokens, rows: Tensor) -> None:
        self.rows(side, tokens).add_(rows)

    def fold(self, side: Side, pairs: Tensor) -> Tensor:
        if self._many_keys if side == "query" else self._many_queries:
            return pairs.sum(tuple(range(self._rank)), keepdim=True)
        return pairs

    def layers(self, pairs: Tensor, missing: float) -> Tensor:
        if not self._many_keys:
            return pairs.unsqueeze(0)
        return pairs.flatten(0, self._rank - 1).unflatten(0, (-1,) + (1,) * self._rank)

    def queries(self, tokens: Tokens) -> Tensor:
        return self.rows("query", tokens)


class ClassChunk(PairChunk):
    """Whole residue classes one after the other: pairs [P, B, …]."""

    uniform = True

    def __init__(self, grid: OffsetGrid, classes: Sequence[tuple[Block, ...]], device: torch.device) -> None:
        tokens = torch.arange(grid.grid_tokens).view(grid.shape)
        blocks = [block for blocks in classes for block in blocks]
        query = torch.cat([tokens[_slices(block.queries)].flatten() for block in blocks])
        key = torch.cat([tokens[_slices(block.keys)].flatten() for block in blocks])
        self.pairs = len(query)
        stops = torch.tensor([block.pairs for block in blocks]).cumsum(0).tolist()
        starts = [stop - block.pairs for block, stop in zip(blocks, stops, strict=True)]
        spans = tuple(map(Span, (block.entry for block in blocks), starts, stops, starts))
        self.shape: dict[Side, tuple[int, ...]] = dict.fromkeys(("query", "key"), (self.pairs,))
        self.runs: dict[Side, Runs] = dict.fromkeys(("query", "key"), Runs(spans))
        self._complete = not grid.causal  # a class of a full grid meets every query exactly once
        self._index: dict[Side, Index] = {}
        sides: tuple[tuple[Side, Tensor], ...] = (("query", query), ("key", key))
        for side, rows in sides:
            layers = _layer_table(rows, spans, grid, len(classes), self.pairs).to(device)
            self._index[side] = Index(rows.to(device), layers, self._complete)
        self.parts: dict[Side, Part] = {s: Part(index, 0, self.pairs) for s, index in self._index.items()}

    def rows(self, side: Side, tokens: Tokens) -> Tensor:
        return tokens.flat.index_select(0, self._index[side].rows)

    def add_rows(self, side: Side, tokens: Tokens, rows: Tensor) -> None:
        self._index[side].add(tokens, rows)

    def fold(self, side: Side, pairs: Tensor) -> Tensor:
        return pairs

    def layers(self, pairs: Tensor, missing: float) -> Tensor:
        if not self._complete:
            pairs = torch.cat([pairs, pairs.new_full((1, *pairs.shape[1:]), missing)])
        layers = self._index["query"].layers
        return pairs.index_select(0, layers.flatten()).unflatten(0, layers.shape)

    def queries(self, tokens: Tokens) -> Tensor:
        return tokens.flat


def _layer_table(
    rows: Tensor, spans: tuple[Span, ...], grid: OffsetGrid, classes: int, missing: int
) -> Tensor:
    """pair[L, N] of each token on one side: a layer is a class of a full grid, or a block of a causal one."""
    n = grid.grid_tokens
    if not grid.causal:
        return torch.argsort(rows.view(classes, n), 1) + n * torch.arange(classes)[:, None]
    table = torch.full((len(spans), n), missing)
    for layer, (_, start, stop, _) in enumerate(spans):
        table[layer, rows[start:stop]] = torch.arange(start, stop)
    return table


def _slices(rectangle: tuple[tuple[int, int], ...] | None) -> tuple[slice, ...] | None:
    return None if rectangle is None else tuple(slice(start, stop) for start, stop in rectangle)
