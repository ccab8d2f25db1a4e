"""The order in which a walk visits the pairs: blocks one by one, or whole residue classes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import torch

from models.offsets import Block, OffsetGrid
from models.ops.device import device_type, on_host
from models.ops.walk.bands import BandChunk
from models.ops.walk.chunks import BlockChunk, Chunk, ClassChunk
from models.ops.walk.tiles import attended

CPU_CHUNK_BYTES = 8 << 20  # larger chunks leave one core's caches and were measured slower
ONE_BY_ONE = 8  # work of a pair that is combined by itself, in pairs of an attention product


class Schedule:
    """The blocks to visit: all of a grid's, or the given ones.

    classes        runs of blocks of equal cost: residue classes, or a band each
    local_entry    where only some bank entries are held: entry → its index among those held
    row_work       work of multiplying a row by an entry, in pairs
    """

    def __init__(
        self,
        grid: OffsetGrid,
        classes: Sequence[tuple[Block, ...]] | None = None,
        special_blocks: Sequence[Block] | None = None,
        local_entry: dict[int, int] | None = None,
        row_work: float = 1.0,
    ) -> None:
        self.grid, self.row_work = grid, row_work
        self.classes = _renumbered(grid.classes if classes is None else classes, local_entry)
        specials = grid.special_blocks if special_blocks is None else special_blocks
        (self.special_blocks,) = _renumbered([tuple(specials)], local_entry)
        self.num_entries = grid.num_entries if local_entry is None else len(local_entry)
        self._class_chunks = lru_cache(maxsize=8)(self._cut_classes)
        self._block_chunks = lru_cache(maxsize=1)(self._cut_blocks)
        self._special_chunks = [BlockChunk(block, grid) for block in self.special_blocks]
        blocks = [block for blocks in (*self.classes, self.special_blocks) for block in blocks]
        self.in_bands = any(block.band is not None for block in blocks)
        self.largest_block = max((max(block.products) for block in blocks), default=1)

    def __deepcopy__(self, copied: dict[int, object]) -> Schedule:
        return self  # nothing in it changes, so copies of a layer share it as layers do

    @cached_property
    def pairs(self) -> int:
        return sum(b.pairs for blocks in (*self.classes, self.special_blocks) for b in blocks)

    @property
    def complete(self) -> bool:
        """Whether all pairs of the grid are here."""
        return self.pairs == self.grid.num_pairs

    @cached_property
    def by_offset(self) -> Schedule:
        """The same pairs as blocks of single offsets, for walks that know no bands."""
        if self.complete:
            return whole_schedule(self.grid, self.row_work, False)
        classes = [tuple(block.offsets()) for blocks in self.classes for block in blocks]
        unrolled = Schedule(self.grid, classes, self.special_blocks, row_work=self.row_work)
        unrolled.num_entries = self.num_entries
        return unrolled

    def work(self, block: Block) -> float:
        """Of a block with a query, a key and a value projection, in pairs."""
        queries, keys = block.products
        return self.row_work * (queries + 2 * keys) + block.pairs

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that a bank multiplies on the query side and on the key side."""
        blocks = [b.products for blocks in (*self.classes, self.special_blocks) for b in blocks]
        return sum(queries for queries, _ in blocks), sum(keys for _, keys in blocks)

    def batch_slice(self, batch: int, pair_bytes: int, workspace: int) -> int:
        """Samples worked on at once: as many as let the largest block, at `pair_bytes` a pair and sample,
        fit into `workspace` bytes; at least one."""
        return min(batch, max(1, workspace // (self.largest_block * pair_bytes)))

    def largest_copy(self, whole_batch: bool) -> int:
        """Tokens of the largest strip that has to be copied because it is not contiguous."""
        n = self.grid.grid_tokens
        return max((n - n // side for side in self.grid.shape[1:]), default=0) if whole_batch else n

    def chunks(self, batch: int, pair_bytes: int, workspace: int, device: torch.device) -> Sequence[Chunk]:
        """All blocks, as whole classes if one or more fit the workspace, else one by one; `pair_bytes` of a
        pair of one sample."""
        if device_type(device) == "cpu":
            workspace = min(workspace, CPU_CHUNK_BYTES)
        fitting = workspace // (self.grid.grid_tokens * batch * pair_bytes)
        if fitting == 0 or not self.classes or self.in_bands:
            return self._block_chunks()
        return self._class_chunks(min(fitting, len(self.classes)), device)

    def _cut_blocks(self) -> Sequence[Chunk]:
        """Largest first; blocks that read the same strips follow each other."""
        chunks = [
            (BandChunk if block.band else BlockChunk)(block, self.grid)
            for blocks in self.classes
            for block in blocks
        ]
        return sorted(chunks, key=_strip_order) + self._special_chunks

    @on_host
    def _cut_classes(self, count: int, device: torch.device) -> Sequence[Chunk]:
        starts = range(0, len(self.classes), count)
        chunks = [ClassChunk(self.grid, self.classes[s : s + count], device) for s in starts]
        return chunks + self._special_chunks


def _strip_order(chunk: BlockChunk) -> tuple:
    widths, strips = chunk.shape["query"][1:], [chunk.parts[side].gather for side in ("query", "key")]
    return -math.prod(widths), strips, -max(chunk.block.products)


@lru_cache(maxsize=64)
def whole_schedule(grid: OffsetGrid, row_work: float = 1.0, in_bands: bool = True) -> Schedule:
    """The schedule of all pairs of a grid, built once and shared by all layers.

    Where offsets share entries, each entry's band is one block if that is less work, unless told otherwise:
    rows are then multiplied once, but attention computes pairs beyond the band as well.
    """
    by_offset = Schedule(grid, row_work=row_work)
    if grid.num_entries == grid.num_offsets or not in_bands:
        return by_offset
    by_entry = Schedule(grid, [(block,) for block in grid.bands], row_work=row_work)
    beyond = sum(attended(block) for block in grid.bands)
    rows = by_entry.rows
    work = row_work * (rows[0] + 2 * rows[1]) + beyond
    return by_entry if work < (3 * row_work + ONE_BY_ONE) * by_offset.pairs else by_offset


def _renumbered(
    classes: Sequence[tuple[Block, ...]], local_entry: dict[int, int] | None
) -> tuple[tuple[Block, ...], ...]:
    if local_entry is None:
        return tuple(classes)
    return tuple(tuple(replace(b, entry=local_entry[b.entry]) for b in blocks) for blocks in classes)
