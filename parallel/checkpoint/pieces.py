"""What a rank's flat run of a parameter is of the whole: boxes, each with its place in the rank's memory.

ZeRO gives a rank a run of a flattened parameter, tensor parallelism a slice of it, offset parallelism some
entries of a bank. All three are boxes of what a checkpoint names: a parameter, or one entry of a bank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from parallel.sharding.layout import Shard

Shape = tuple[int, ...]
Run = tuple[int, int]
"""Start and stop in a flattened tensor."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Boxes of one shape and place, one of each entry, which follow one another in a rank's memory.

    name      the parameter
    entries   of a bank: the entries, whose boxes these are; None: one box of the whole parameter
    whole     the shape of an entry, or of the parameter
    offsets, sizes   of the box therein
    start     in the rank's run: the element where the first box's memory begins
    held      the shape of that memory for each entry; larger than `sizes` where the box is a slice of it
    inside    where the box begins in that memory
    """

    name: str
    entries: tuple[int, ...] | None
    whole: Shape
    offsets: Shape
    sizes: Shape
    start: int
    held: Shape
    inside: Shape

    @property
    def boxes(self) -> int:
        return 1 if self.entries is None else len(self.entries)

    @property
    def numel(self) -> int:
        """Elements of one box."""
        return math.prod(self.sizes)

    def keys(self) -> list[str]:
        """The name of each box's whole: `layers.0.mixer.q_bank[17]`, or the parameter's."""
        return [self.name] if self.entries is None else [f"{self.name}[{entry}]" for entry in self.entries]

    def view(self, run: Tensor) -> Tensor:
        """The boxes, [boxes, *sizes], of the rank's flat run."""
        memory = run[self.start : self.start + self.boxes * math.prod(self.held)]
        boxes = memory.view(self.boxes, *self.held)
        for dim, (start, size) in enumerate(zip(self.inside, self.sizes, strict=True), 1):
            boxes = boxes.narrow(dim, start, size)
        return boxes


def pieces(name: str, shard: Shard, run: Run, by_head: bool = False) -> list[Piece]:
    """The run of the flattened shard as boxes of the whole; what lies in a padding is left out.

    by_head   cut the boxes of a bank between heads: a rank of another tensor axis then reads whole boxes
    """
    found = list(_bank_pieces(name, shard, run) if shard.bank else _dense_pieces(name, shard, run))
    if by_head and shard.head_width:
        return [part for piece in found for part in _by_head(piece, *shard.head_width)]
    return found


def share_of_run(shard: Shard, rank: int, ranks: int) -> Run:
    """The part of a shard that one of several replicas writes: whole rows, or whole entries of a bank."""
    rows = shard.shape[0] if shard.shape else 1
    inner = shard.numel // rows if rows else 0
    return rows * rank // ranks * inner, rows * (rank + 1) // ranks * inner


def _bank_pieces(name: str, shard: Shard, run: Run) -> Iterator[Piece]:
    entries = tuple(range(shard.full[0])) if shard.entries is None else shard.entries
    local = replace(
        shard, full=shard.full[1:], entries=None, dim=None if shard.dim is None else shard.dim - 1
    )
    start, stop = run
    size = local.numel
    first, last = -(-start // size), stop // size  # whole entries
    spans = [(start, stop)] if first > last else [(start, first * size), (last * size, stop)]
    if first < last:
        (box,) = _boxes(local, 0, size)
        yield _piece(name, entries[first:last], local, box, first * size - start)
    for low, high in spans:
        if low < high:
            entry = low // size
            for box in _boxes(local, low - entry * size, high - entry * size):
                yield _piece(name, (entries[entry],), local, box, entry * size - start)


def _dense_pieces(name: str, shard: Shard, run: Run) -> Iterator[Piece]:
    for box in _boxes(shard, *run):
        yield _piece(name, None, shard, box, -run[0])


_Box = tuple[Shape, Shape, int]  # offsets and sizes in an array, and the element where it begins


def _piece(name: str, entries: tuple[int, ...] | None, shard: Shard, box: _Box, first: int) -> Piece:
    offsets, sizes, position = box
    if shard.dim is not None:
        offsets = _with(offsets, shard.dim, offsets[shard.dim] + shard.start)
    return Piece(name, entries, shard.full, offsets, sizes, first + position, sizes, (0,) * len(sizes))


def _boxes(shard: Shard, start: int, stop: int) -> Iterator[_Box]:
    """The run as boxes of the shard's array, without its padding."""
    for offsets, sizes, position in boxes_of_run(shard.shape, start, stop):
        if shard.dim is not None and shard.stop > shard.full[shard.dim]:
            assert shard.dim == 0  # so that what is left still lies in one run
            kept = min(sizes[0], shard.inside[1] - offsets[0])
            if kept <= 0:
                continue
            sizes = (kept, *sizes[1:])
        yield offsets, sizes, position


def boxes_of_run(shape: Shape, start: int, stop: int) -> list[_Box]:
    """The run [start, stop) of a row-major array as at most 2n−1 boxes, each contiguous in the run."""
    if start >= stop:
        return []
    if not shape:
        return [((), (), 0)]
    inner = math.prod(shape[1:])
    row, last = start // inner, (stop - 1) // inner
    if row == last and stop - start < inner:
        within = boxes_of_run(shape[1:], start - row * inner, stop - row * inner)
        return [((row, *offsets), (1, *sizes), row * inner + at) for offsets, sizes, at in within]
    found: list[_Box] = []
    first, end = -(-start // inner), stop // inner
    if start < first * inner:
        found += boxes_of_run(shape, start, first * inner)
    if first < end:
        found.append(((first, *(0 for _ in shape[1:])), (end - first, *shape[1:]), first * inner))
    if end * inner < stop:
        found += boxes_of_run(shape, end * inner, stop)
    return found


def _by_head(piece: Piece, dim: int, width: int) -> Iterator[Piece]:
    start = piece.offsets[dim]
    stop = start + piece.sizes[dim]
    while start < stop:
        end = min(stop, (start // width + 1) * width)
        yield replace(
            piece,
            offsets=_with(piece.offsets, dim, start),
            sizes=_with(piece.sizes, dim, end - start),
            inside=_with(piece.inside, dim, start - piece.offsets[dim]),
        )
        start = end


def _with(shape: Shape, dim: int, value: int) -> Shape:
    return (*shape[:dim], value, *shape[dim + 1 :])
