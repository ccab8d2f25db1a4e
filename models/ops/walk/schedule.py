"""The order in which the streamed operator visits the pairs, and the token rows that it reads for them.

One step is a *chunk* of blocks. A `BlockChunk` is one block: its queries and keys are rectangles of
the grid, so plain strided views; best when one block fills the caches. A `ClassChunk` is a run of whole
residue classes, read through index tables; best when blocks are small or the device wants few, large
calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid
from models.ops.walk.rows import Index, Part, Side, Strip, Tokens

CPU_CHUNK_BYTES = 8 << 20  # larger chunks leave one core's caches and were measured slower
_meta_stands_for = ["cuda"]


class Span(NamedTuple):
    """The token rows [start, stop) of a chunk that one bank entry multiplies."""

    entry: int
    start: int
    stop: int


class Runs:
    """The runs of rows on one side of a chunk, each multiplied by one bank entry."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self.slices = lru_cache(maxsize=4)(self._slices)
        self.only = self.spans[0].entry if len(self.spans) == 1 else None

    def _slices(self, batch: int) -> list[tuple[int, slice]]:
        """The entry and the rows of each run, for a loop of products."""
        return [(entry, slice(start * batch, stop * batch)) for entry, start, stop in self.spans]


class Chunk(Protocol):
    """Some of the pairs; pair tensors are [*pair_shape, B, …].

    uniform   pair tensors have as many dimensions in every such chunk, so one compiled function serves all
    shape     of either side; broadcasts to pair_shape
    parts     the tokens that either side reads
    runs      the runs of those tokens that one bank entry multiplies
    """

    pairs: int
    uniform: bool
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

    def layers(self, pairs: Tensor, missing: float) -> Tensor:
        """Pair values as [L, *queries, B, …], at most one pair per layer and query; `missing` elsewhere."""
        ...

    def queries(self, tokens: Tokens) -> Tensor:
        """A writable view [*queries, B, …] of the tokens that are queries here."""
        ...


class BlockChunk:
    """One block: pairs [*rectangle, B, …]; a class token's side is [1, …, 1, B, …]."""

    uniform = False

    def __init__(self, block: Block, grid: OffsetGrid) -> None:
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
            self.runs[side] = Runs([Span(block.entry, 0, rows)])

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


class ClassChunk:
    """Whole residue classes one after the other: pairs [P, B, …]."""

    uniform = True

    def __init__(self, grid: OffsetGrid, classes: Sequence[tuple[Block, ...]], device: torch.device) -> None:
        tokens = torch.arange(grid.grid_tokens).view(grid.shape)
        blocks = [block for blocks in classes for block in blocks]
        query = torch.cat([tokens[_slices(block.queries)].flatten() for block in blocks])
        key = torch.cat([tokens[_slices(block.keys)].flatten() for block in blocks])
        self.pairs = len(query)
        stops = torch.tensor([block.pairs for block in blocks]).cumsum(0).tolist()
        spans = tuple(Span(b.entry, stop - b.pairs, stop) for b, stop in zip(blocks, stops, strict=True))
        self.shape: dict[Side, tuple[int, ...]] = dict.fromkeys(("query", "key"), (self.pairs,))
        self.runs: dict[Side, Runs] = dict.fromkeys(("query", "key"), Runs(spans))
        self._complete = not grid.causal  # a class of a full grid meets every query exactly once
        self._layers = _layer_table(query, spans, grid, len(classes), self.pairs).to(device)
        self._index: dict[Side, Index] = {"query": Index(query.to(device)), "key": Index(key.to(device))}
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
        return pairs.index_select(0, self._layers.flatten()).unflatten(0, self._layers.shape)

    def queries(self, tokens: Tokens) -> Tensor:
        return tokens.flat


def _layer_table(
    query: Tensor, spans: tuple[Span, ...], grid: OffsetGrid, classes: int, missing: int
) -> Tensor:
    """pair[L, queries]: a layer is a class of a full grid, or a single block of a causal sequence."""
    n = grid.grid_tokens
    if not grid.causal:
        return torch.argsort(query.view(classes, n), 1) + n * torch.arange(classes)[:, None]
    table = torch.full((len(spans), n), missing)
    for layer, (_, start, stop) in enumerate(spans):
        table[layer, query[start:stop]] = torch.arange(start, stop)
    return table


def _slices(rectangle: tuple[tuple[int, int], ...] | None) -> tuple[slice, ...] | None:
    return None if rectangle is None else tuple(slice(start, stop) for start, stop in rectangle)


class Schedule:
    """The blocks to stream over: all of a grid's, or the given ones.

    local_entry   where only some bank entries are held: entry → its index among those held
    """

    def __init__(
        self,
        grid: OffsetGrid,
        classes: Sequence[tuple[Block, ...]] | None = None,
        special_blocks: Sequence[Block] | None = None,
        local_entry: dict[int, int] | None = None,
    ) -> None:
        self.grid = grid
        self.classes = _renumbered(grid.classes if classes is None else classes, local_entry)
        specials = grid.special_blocks if special_blocks is None else special_blocks
        (self.special_blocks,) = _renumbered([tuple(specials)], local_entry)
        self.num_entries = grid.num_entries if local_entry is None else len(local_entry)
        self._class_chunks = lru_cache(maxsize=8)(self._cut_classes)
        self._block_chunks = lru_cache(maxsize=1)(self._cut_blocks)
        self._special_chunks = [BlockChunk(block, grid) for block in self.special_blocks]
        largest = [block.pairs for blocks in (*self.classes, self.special_blocks) for block in blocks]
        self.largest_block = max(largest, default=1)

    @property
    def pairs(self) -> int:
        return sum(b.pairs for blocks in (*self.classes, self.special_blocks) for b in blocks)

    def batch_slice(self, batch: int, pair_bytes: int, workspace: int) -> int:
        """Samples worked on at once: as many as let the largest block, at `pair_bytes` a pair and sample,
        fit into `workspace` bytes; at least one."""
        return min(batch, max(1, workspace // (self.largest_block * pair_bytes)))

    def largest_copy(self, whole_batch: bool) -> int:
        """Tokens of the largest strip that has to be copied because it is not contiguous."""
        n = self.grid.grid_tokens
        return max((n - n // side for side in self.grid.shape[1:]), default=0) if whole_batch else n

    def chunks(self, batch: int, pair_bytes: int, workspace: int, device: torch.device) -> Sequence[Chunk]:
        """All blocks, as whole classes if one or more fit the workspace at `pair_bytes` a pair and sample,
        else one by one."""
        if device_type(device) == "cpu":
            workspace = min(workspace, CPU_CHUNK_BYTES)
        fitting = workspace // (self.grid.grid_tokens * batch * pair_bytes)
        if fitting == 0 or not self.classes:
            return self._block_chunks()
        return self._class_chunks(min(fitting, len(self.classes)), device)

    def _cut_blocks(self) -> Sequence[Chunk]:
        """Largest first; blocks that read the same strips follow each other."""
        chunks = [BlockChunk(block, self.grid) for blocks in self.classes for block in blocks]
        return sorted(chunks, key=_strip_order) + self._special_chunks

    def _cut_classes(self, count: int, device: torch.device) -> Sequence[Chunk]:
        starts = range(0, len(self.classes), count)
        chunks = [ClassChunk(self.grid, self.classes[s : s + count], device) for s in starts]
        return chunks + self._special_chunks


def _strip_order(chunk: BlockChunk) -> tuple:
    widths, strips = chunk.shape["query"][1:], [chunk.parts[side].gather for side in ("query", "key")]
    return -math.prod(widths), strips, -chunk.pairs


@lru_cache(maxsize=64)
def whole_schedule(grid: OffsetGrid) -> Schedule:
    """The schedule of all blocks of a grid, built once and shared by all layers."""
    return Schedule(grid)


def device_type(device: torch.device) -> str:
    """The device's type; for the meta device, of what it stands for."""
    return _meta_stands_for[-1] if device.type == "meta" else device.type


@contextmanager
def meta_stands_for(device_type: str) -> Iterator[None]:
    """Cuts chunks on the meta device as on devices of this type, to measure what a pass would cost there."""
    _meta_stands_for.append(device_type)
    try:
        yield
    finally:
        _meta_stands_for.pop()


def _renumbered(
    classes: Sequence[tuple[Block, ...]], local_entry: dict[int, int] | None
) -> tuple[tuple[Block, ...], ...]:
    if local_entry is None:
        return tuple(classes)
    return tuple(tuple(Block(local_entry[b.entry], b.queries, b.keys) for b in blocks) for blocks in classes)
