"""The order in which the streamed operator walks over the pairs, and how the rows of each step are
read from and added to token-major tensors.

A step is a *chunk* of blocks. Two kinds cover all cases. A `BlockChunk` is one block: its queries
and keys are rectangles of the grid, so plain strided views; best when a block alone fills the
caches. A `ClassChunk` is a run of whole residue classes read through index tables; best when blocks
are small or the device wants few, large calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid

Side = Literal["query", "key"]
Place = Callable[[tuple[int, ...]], Tensor]

CPU_CHUNK_BYTES = 8 << 20  # larger chunks leave one core's caches and were measured slower
MAX_RUNS = 1023  # of a chunk of classes: as many as one grouped product takes


class Tokens(NamedTuple):
    """Views of a token-major tensor [N, B, …]: the grid [*shape, B, …], the same flat, and the class
    token with the grid's rank [1, …, 1, B, …] (empty where there is none)."""

    grid: Tensor
    flat: Tensor
    class_token: Tensor
    tail: tuple[int, ...]  # B, …
    strides: tuple[int, ...]  # of the grid
    start: int

    def rectangle(self, corner: tuple[int, ...], extent: tuple[int, ...]) -> Tensor:
        """The view [*extent, B, …] of the grid from `corner` on; one call where indexing takes three."""
        start = self.start
        for place, stride in zip(corner, self.strides, strict=False):
            start += place * stride
        return self.grid.as_strided(extent + self.tail, self.strides, start)


def view_tokens(t_NB: Tensor, grid: OffsetGrid) -> Tokens:
    flat, tail = t_NB[int(grid.class_token) :], tuple(t_NB.shape[1:])
    token = t_NB[:1].view((1,) * len(grid.shape) + tail)
    whole = flat.unflatten(0, grid.shape)
    return Tokens(whole, flat, token, tail, whole.stride(), int(whole.storage_offset()))


class Span(NamedTuple):
    """The token rows [start, stop) of a chunk that one bank entry multiplies."""

    entry: int
    start: int
    stop: int


class Runs:
    """The runs of rows on one side of a chunk, each multiplied by one bank entry."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self.groups = lru_cache(maxsize=4)(self._groups)
        self.slices = lru_cache(maxsize=4)(self._slices)
        self.only = self.spans[0].entry if len(self.spans) == 1 else None  # one run: all rows are its

    def _slices(self, batch: int) -> list[tuple[int, slice]]:
        """The entry and the rows of each run, for a loop of products."""
        return [(entry, slice(start * batch, stop * batch)) for entry, start, stop in self.spans]

    def _groups(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """For a grouped product: the entries [G] and where each one's rows end [G] (int32)."""
        entries = torch.tensor([span.entry for span in self.spans], device=device)
        stops = torch.tensor([span.stop * batch for span in self.spans], dtype=torch.int32, device=device)
        return entries, stops


class Chunk(Protocol):
    """Some pairs. Pair tensors are [*pair_shape, B, …]; `runs` are the products of each side.

    `uniform` chunks of all plans have shapes of one rank, so one compiled function serves them.
    """

    pairs: int
    uniform: bool
    runs: dict[Side, Runs]

    def rows(self, side: Side, tokens: Tokens) -> Tensor:
        """The tokens that stand on one side of the pairs; broadcasts against [*pair_shape, B, …]."""
        ...

    def copy_rows(self, side: Side, tokens: Tokens, place: Place) -> Tensor:
        """The same, contiguous in memory of our own: place(shape) gives it."""
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

    def __init__(self, block: Block) -> None:
        self._corner = {"query": _corner(block.queries), "key": _corner(block.keys)}
        rectangle = block.queries or block.keys
        self._rank = len(rectangle) if rectangle else 0
        self._extent = tuple(stop - start for start, stop in rectangle or ())
        self._many_keys = block.queries is None and block.keys is not None
        self._many_queries = block.keys is None and block.queries is not None
        self.pairs = block.pairs
        query_rows, key_rows = block.products
        self.runs: dict[Side, Runs] = {
            "query": Runs([Span(block.entry, 0, query_rows)]),
            "key": Runs([Span(block.entry, 0, key_rows)]),
        }

    def rows(self, side: Side, tokens: Tokens) -> Tensor:
        corner = self._corner[side]
        return tokens.class_token if corner is None else tokens.rectangle(corner, self._extent)

    def copy_rows(self, side: Side, tokens: Tokens, place: Place) -> Tensor:
        rows = self.rows(side, tokens)
        return place(tuple(rows.shape)).copy_(rows)

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
        self.runs: dict[Side, Runs] = dict.fromkeys(("query", "key"), Runs(spans))
        self._complete = not grid.causal  # a class of a full grid meets every query exactly once
        self._layers = _layer_table(query, spans, grid, len(classes), self.pairs).to(device)
        self._index = {"query": query.to(device), "key": key.to(device)}

    def rows(self, side: Side, tokens: Tokens) -> Tensor:
        return tokens.flat.index_select(0, self._index[side])

    def copy_rows(self, side: Side, tokens: Tokens, place: Place) -> Tensor:
        out = place((self.pairs, *tokens.tail))
        return torch.index_select(tokens.flat, 0, self._index[side], out=out)

    def add_rows(self, side: Side, tokens: Tokens, rows: Tensor) -> None:
        tokens.flat.index_add_(0, self._index[side], rows.to(tokens.flat.dtype))

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


def _corner(rectangle: tuple[tuple[int, int], ...] | None) -> tuple[int, ...] | None:
    return None if rectangle is None else tuple(start for start, _ in rectangle)


def _slices(rectangle: tuple[tuple[int, int], ...] | None) -> tuple[slice, ...] | None:
    return None if rectangle is None else tuple(slice(start, stop) for start, stop in rectangle)


class Plan:
    """The blocks that one process streams over: all of a grid's by default, a share of them when the
    bank is sharded by offset (then `local_entry` numbers the entries it holds)."""

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
        self._special_chunks = [BlockChunk(block) for block in self.special_blocks]
        largest = [block.pairs for blocks in (*self.classes, self.special_blocks) for block in blocks]
        self.largest_block = max(largest, default=1)

    @property
    def pairs(self) -> int:
        return sum(b.pairs for blocks in (*self.classes, self.special_blocks) for b in blocks)

    def batch_slice(self, batch: int, pair_bytes: int, workspace: int) -> int:
        """How much of the batch can be worked on at once when the largest block needs `pair_bytes`
        for each of its pairs and samples, within `workspace` bytes; at least one sample."""
        return min(batch, max(1, workspace // (self.largest_block * pair_bytes)))

    def chunks(
        self, batch: int, pair_bytes: int, workspace: int, device: torch.device, entry_bytes: int = 0
    ) -> Sequence[Chunk]:
        """All blocks, as whole classes if one or more fit the workspace, else one by one.

        pair_bytes   that a pair of one sample takes
        entry_bytes  that a bank entry takes when entries are gathered for a grouped product
        """
        if device.type == "cpu":
            workspace = min(workspace, CPU_CHUNK_BYTES)
        runs = max(map(len, self.classes), default=1)
        fitting = workspace // (self.grid.grid_tokens * batch * pair_bytes + runs * entry_bytes)
        if fitting == 0 or not self.classes:
            return self._block_chunks()
        return self._class_chunks(min(fitting, len(self.classes), max(1, MAX_RUNS // runs)), device)

    def _cut_blocks(self) -> Sequence[Chunk]:
        return [BlockChunk(b) for blocks in self.classes for b in blocks] + self._special_chunks

    def _cut_classes(self, count: int, device: torch.device) -> Sequence[Chunk]:
        starts = range(0, len(self.classes), count)
        chunks = [ClassChunk(self.grid, self.classes[s : s + count], device) for s in starts]
        return chunks + self._special_chunks


@lru_cache(maxsize=64)
def whole_plan(grid: OffsetGrid) -> Plan:
    """The plan of all blocks of a grid, built once and shared by all layers."""
    return Plan(grid)


def _renumbered(
    classes: Sequence[tuple[Block, ...]], local_entry: dict[int, int] | None
) -> tuple[tuple[Block, ...], ...]:
    if local_entry is None:
        return tuple(classes)
    return tuple(tuple(Block(local_entry[b.entry], b.queries, b.keys) for b in blocks) for blocks in classes)
