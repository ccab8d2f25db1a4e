"""Maps pairs of tokens to bank entries.

The offset of a pair is δ = p_i − p_j, query position minus key position. `OffsetGrid` numbers the
offsets, shares entries between offsets if asked, and divides the N² pairs into *blocks*: the pairs
of one offset join a rectangle of queries with an equal rectangle of keys. Blocks are grouped into
*residue classes* of equal cost. Where offsets share entries, the pairs of one entry also are one block,
a band of offsets between two rectangles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from models.sharing import buckets, one_matrix

MASKED = -1  # the entry of a pair that does not exist (causal: the key is in the future)


Range = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """Pairs that share a bank entry: `queries` and `keys` are rectangles of grid coordinates.

    A rectangle is a (start, stop) per grid dimension. `None` is the class token, paired with every
    position of the other side's rectangle. Without a `band` the rectangles are equal, and the pairs are
    those of one offset; with one, all pairs of offsets from its least to its greatest, per dimension.
    """

    entry: int
    queries: tuple[Range, ...] | None
    keys: tuple[Range, ...] | None
    band: tuple[Range, ...] | None = None

    @property
    def pairs(self) -> int:
        if self.band is not None:
            assert self.queries is not None
            assert self.keys is not None
            return math.prod(map(_pairs_in_band, self.queries, self.keys, self.band))
        return _area(self.queries or self.keys or ())

    def offsets(self) -> Iterator[Block]:
        """A block for each of the band's offsets that has pairs; itself without a band."""
        if self.band is None or self.queries is None or self.keys is None:
            yield self
            return
        for offset in itertools.product(*(range(least, greatest + 1) for least, greatest in self.band)):
            sides = list(zip(self.queries, self.keys, offset, strict=True))
            queries = tuple((max(q[0], k[0] + d), min(q[1], k[1] + d)) for q, k, d in sides)
            if all(start < stop for start, stop in queries):
                keys = tuple((a - d, b - d) for (a, b), d in zip(queries, offset, strict=True))
                yield Block(self.entry, queries, keys)

    @property
    def products(self) -> tuple[int, int]:
        """Rows multiplied by the bank on the query and on the key side; 1 for the class token."""
        return (_area(self.queries or ()), _area(self.keys or ()))


def _area(rectangle: tuple[Range, ...]) -> int:
    return math.prod(stop - start for start, stop in rectangle)


@lru_cache(maxsize=1 << 16)
def _pairs_in_band(queries: Range, keys: Range, band: Range) -> int:
    return sum(
        max(0, min(queries[1], keys[1] + delta) - max(queries[0], keys[0] + delta))
        for delta in range(band[0], band[1] + 1)
    )


class OffsetGrid:
    """The offsets of an N-dimensional grid of tokens.

    shape        tokens along each dimension, e.g. (14, 14); a sequence is (N,)
    causal       keys in the future do not exist; sequences only
    class_token  token 0 is outside the grid and has three offsets of its own
    share        which offsets use one entry: a rule of models/sharing.py for the distance along each
                 dimension, such as "log(1.5)"; "clip(0)" is one matrix for all pairs

    `num_tokens` N includes the class token; `num_offsets` counts the distinct offsets, `num_entries`
    the bank entries they map to (equal unless shared). Entries are numbered by δ in row-major order,
    then cls→cls, cls query→tokens, token query→cls key. Two grids of the same arguments are equal
    and share their tables. Raises ValueError for a grid that makes no sense.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        causal: bool = False,
        class_token: bool = False,
        share: str = "none",
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"grid shape {shape}: one or more positive whole numbers are needed")
        if causal and len(shape) != 1:
            raise ValueError(f"causal grid of shape {shape}: only sequences (N,) are causal")
        if causal and class_token:
            raise ValueError("a causal sequence has no class token: it would see the future")
        self.shape, self.causal, self.class_token, self.share = shape, causal, class_token, share
        self._reach = [buckets(share, n) for n in shape]
        self.grid_tokens = math.prod(shape)
        self.num_tokens = self.grid_tokens + class_token
        self.num_offsets = math.prod(n if causal else 2 * n - 1 for n in shape) + 3 * class_token
        self._sides = [max(reach) + 1 for reach in self._reach]  # distinct distances per dimension
        self._grid_entries = math.prod(s if causal else 2 * s - 1 for s in self._sides)
        self._one_matrix = one_matrix(share)
        specials = 0 if self._one_matrix else 3 * class_token
        self.num_entries = self._grid_entries + specials

    @property
    def _key(self) -> tuple:
        return (self.shape, self.causal, self.class_token, self.share)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OffsetGrid) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        options = f"causal={self.causal}, class_token={self.class_token}, share={self.share!r}"
        return f"OffsetGrid({self.shape}, {options})"

    def __deepcopy__(self, copied: dict[int, object]) -> OffsetGrid:
        return self  # nothing in it changes

    @property
    def num_pairs(self) -> int:
        """Pairs (i, j) that exist: N², or N(N+1)/2 for a causal sequence."""
        n = self.num_tokens
        return n * (n + 1) // 2 if self.causal else n * n

    def entry(self, offset: tuple[int, ...]) -> int:
        """The bank entry of a grid offset δ."""
        index = 0
        for delta, reach, side in zip(offset, self._reach, self._sides, strict=True):
            distance = reach[abs(delta)]
            signed = distance if delta >= 0 else -distance
            index = index * (side if self.causal else 2 * side - 1)
            index += signed if self.causal else signed + side - 1
        return index

    @property
    def special_entries(self) -> tuple[int, int, int]:
        """The entries of cls→cls, cls query→tokens, token query→cls key."""
        if self._one_matrix:
            return (0, 0, 0)
        first = self._grid_entries
        return (first, first + 1, first + 2)

    @cached_property
    def table(self) -> Tensor:
        """entry[N, N] of the pair (query i, key j); MASKED where a causal key is in the future."""
        axes = [torch.arange(n) for n in self.shape]
        position = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(self.grid_tokens, -1)
        delta = position[:, None] - position[None, :]
        table = torch.zeros(delta.shape[:2], dtype=torch.long)
        for d, (reach, side) in enumerate(zip(self._reach, self._sides, strict=True)):
            distance = torch.tensor(reach)[delta[..., d].abs()] * delta[..., d].sign()
            table = table * (side if self.causal else 2 * side - 1)
            table = table + (distance if self.causal else distance + side - 1)
        if self.causal:
            table = table.masked_fill(delta[..., 0] < 0, MASKED)
        if not self.class_token:
            return table
        cls_cls, cls_query, cls_key = self.special_entries
        whole = torch.full((self.num_tokens, self.num_tokens), cls_key)
        whole[0, :] = cls_query
        whole[0, 0] = cls_cls
        whole[1:, 1:] = table
        return whole

    @cached_property
    def classes(self) -> tuple[tuple[Block, ...], ...]:
        """Blocks by residue class r = δ mod shape; every grid pair is in exactly one block.

        A class of a full grid has every query once and every key once; a causal class joins δ and N − δ
        and has N pairs (the middle one of an even N has N/2).
        """
        if self.causal:
            return self._causal_classes()
        return tuple(
            tuple(self._block(offset) for offset in itertools.product(*map(_folded, residue, self.shape)))
            for residue in itertools.product(*map(range, self.shape))
        )

    @cached_property
    def special_blocks(self) -> tuple[Block, ...]:
        """The class token's blocks: cls→cls, cls query→tokens, token query→cls key."""
        if not self.class_token:
            return ()
        cls_cls, cls_query, cls_key = self.special_entries
        everything = tuple((0, n) for n in self.shape)
        return (
            Block(cls_cls, None, None),
            Block(cls_query, None, everything),
            Block(cls_key, everything, None),
        )

    @cached_property
    def bands(self) -> tuple[Block, ...]:
        """All grid pairs as one block per entry: a band of offsets, or a single offset."""
        per_dimension = [
            _entry_ranges(reach, n, self.causal) for reach, n in zip(self._reach, self.shape, strict=True)
        ]
        return tuple(self._band(band) for band in itertools.product(*per_dimension))

    def _band(self, band: tuple[Range, ...]) -> Block:
        if all(least == greatest for least, greatest in band):
            return self._block(tuple(least for least, _ in band))
        queries = tuple((max(lo, 0), n + min(hi, 0)) for (lo, hi), n in zip(band, self.shape, strict=True))
        keys = tuple((max(-hi, 0), n - max(lo, 0)) for (lo, hi), n in zip(band, self.shape, strict=True))
        return Block(self.entry(tuple(least for least, _ in band)), queries, keys, band)

    def _block(self, offset: tuple[int, ...]) -> Block:
        queries = tuple((max(d, 0), n + min(d, 0)) for d, n in zip(offset, self.shape, strict=True))
        keys = tuple((start - d, stop - d) for (start, stop), d in zip(queries, offset, strict=True))
        return Block(self.entry(offset), queries, keys)

    def _causal_classes(self) -> tuple[tuple[Block, ...], ...]:
        (n,) = self.shape
        return tuple(
            tuple(self._block((delta,)) for delta in sorted({r, n - r} - {n})) for r in range(n // 2 + 1)
        )


def _folded(residue: int, n: int) -> tuple[int, ...]:
    """The offsets along one dimension with this residue."""
    return (residue,) if residue == 0 else (residue, residue - n)


def _entry_ranges(reach: tuple[int, ...], n: int, causal: bool) -> list[Range]:
    """The (least, greatest) offset of each entry along one dimension."""
    signed = [(reach[d] if d >= 0 else -reach[-d], d) for d in range(0 if causal else 1 - n, n)]
    groups = [[d for _, d in group] for _, group in itertools.groupby(signed, key=lambda pair: pair[0])]
    return [(group[0], group[-1]) for group in groups]
