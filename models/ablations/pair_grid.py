"""Bank entries by pairs of tokens in place of offsets, to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from models.offsets import Block, OffsetGrid, Range


class PairGrid(OffsetGrid):
    """A grid whose entries are those of pairs of tokens, not of offsets.

    With it one can tell what is due to the offset, and what to the number of matrices.

    scattered  False: an entry for every pair (query i, key j), N² of them. True: as many entries as there are
               offsets, each for as many pairs, but for pairs of any offset

    Classes are those of the offsets, each pair a block. Not for causal sequences. Source: arXiv 2510.10060,
    the ablation by absolute positions; scattering is ours.
    """

    def __init__(self, shape: tuple[int, ...], class_token: bool = False, scattered: bool = False) -> None:
        super().__init__(shape, class_token=class_token)
        self.scattered = scattered
        self.num_entries = self.num_offsets if scattered else self.num_pairs
        self.num_offsets = self.num_pairs

    @property
    def _key(self) -> tuple:
        return (PairGrid, self.scattered, *super()._key)

    def __repr__(self) -> str:
        return f"PairGrid({self.shape}, class_token={self.class_token}, scattered={self.scattered})"

    @property
    def in_bands(self) -> bool:
        return False

    @cached_property
    def table(self) -> Tensor:
        """entry[N, N] of the pair (query i, key j)."""
        return torch.tensor(self._entries).view(self.num_tokens, -1)

    @cached_property
    def _entries(self) -> list[int]:
        pairs = range(self.num_pairs)
        if not self.scattered:
            return list(pairs)
        ranks = _inverse(sorted(pairs, key=_mixed_bits))
        return [rank * self.num_entries // self.num_pairs for rank in ranks]

    @cached_property
    def classes(self) -> tuple[tuple[Block, ...], ...]:
        """The pairs by residue class of their offset."""
        return tuple(self._pairs(blocks) for blocks in super().classes)

    @cached_property
    def special_blocks(self) -> tuple[Block, ...]:
        """The class token's pairs."""
        return self._pairs(super().special_blocks)

    def _pairs(self, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        """The pairs of blocks, each with its own entry."""
        found = []
        for block in blocks:
            sides = [list(_cells(rectangle)) for rectangle in (block.queries, block.keys)]
            length = max(map(len, sides))
            for query, key in zip(*(side * (length // len(side)) for side in sides), strict=True):
                pair = self._token(query) * self.num_tokens + self._token(key)
                found.append(Block(self._entries[pair], query, key))
        return tuple(found)

    def _token(self, cell: tuple[Range, ...] | None) -> int:
        if cell is None:
            return 0
        index = 0
        for (start, _), n in zip(cell, self.shape, strict=True):
            index = index * n + start
        return index + self.class_token


def _inverse(order: list[int]) -> list[int]:
    """The place of each number in `order`."""
    places = [0] * len(order)
    for place, number in enumerate(order):
        places[number] = place
    return places


def _mixed_bits(number: int) -> int:
    """A fixed order of numbers that looks random (the finalizer of SplitMix64)."""
    mask = (1 << 64) - 1
    number = (number + 1) * 0x9E3779B97F4A7C15 & mask
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & mask
    number = (number ^ number >> 27) * 0x94D049BB133111EB & mask
    return number ^ number >> 31


def _cells(rectangle: tuple[Range, ...] | None) -> Iterator[tuple[Range, ...] | None]:
    """A rectangle's single tokens; the class token is one."""
    if rectangle is None:
        yield None
        return
    yield from itertools.product(*([(i, i + 1) for i in range(*side)] for side in rectangle))
