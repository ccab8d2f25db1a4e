"""The flat lists that the fused operators take, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from models.ops.fused.tiles import Tile


class ForwardTables(NamedTuple):
    tokens: Tensor
    bounds: Tensor
    step_run: Tensor
    step_pair: Tensor
    key: Tensor
    run_entry: Tensor


class BackwardTables(NamedTuple):
    query: Tensor
    key: Tensor
    run_start: Tensor
    run_entry: Tensor
    run_again: Tensor
    tile_run: Tensor
    tile_first: Tensor
    query_tokens: Tensor
    query_bounds: Tensor
    query_step_run: Tensor
    query_step_pair: Tensor
    key_tokens: Tensor
    key_bounds: Tensor
    key_step_run: Tensor
    key_step_pair: Tensor


class ForwardCut(NamedTuple):
    """Where a launch begins: its chunk, its first run, and the steps that all groups took before."""

    chunk: int
    run: int
    steps: int


class BackwardCut(NamedTuple):
    """Where a chunk begins: its first pair, run and tile, and the steps of both sides before."""

    pair: int
    run: int
    tile: int
    query_steps: int
    key_steps: int


Row = TypeVar("Row", ForwardCut, BackwardCut, Tile)


class Sides(NamedTuple):
    """The three operands: their sources and banks, C of the projected ones (0 if none is), and D."""

    sources: tuple[Tensor, Tensor, Tensor]
    banks: tuple[Tensor | None, Tensor | None, Tensor | None]
    channels: int
    width: int

    @property
    def share(self) -> bool:
        """Whether keys and values are projections of the same rows."""
        return self.banks[1] is not None and self.banks[2] is not None and self.sources[1] is self.sources[2]


def sides_of(sources: Sequence[Tensor], banks: Sequence[Tensor], operands: Sequence[int]) -> Sides:
    chosen = [sources[s] for s in operands[::2]]
    projected = [None if b < 0 else banks[b] for b in operands[1::2]]
    width = (chosen[0] if projected[0] is None else projected[0]).shape[2]
    channels = max((bank.shape[1] for bank in projected if bank is not None), default=0)
    return Sides(tuple(chosen), tuple(projected), channels, width)  # pyright: ignore[reportArgumentType]


def unflatten_tiles(tiles: Sequence[int]) -> list[Tile]:
    return _rows(Tile, tiles)


def unflatten_cuts(kind: type[Row], cuts: Sequence[int]) -> list[Row]:
    return _rows(kind, cuts)


def _rows(kind: type[Row], numbers: Sequence[int]) -> list[Row]:
    size = len(kind._fields)
    return [kind(*numbers[i : i + size]) for i in range(0, len(numbers), size)]


def bank_products(sides: Sides) -> Iterator[tuple[Tensor, list[int]]]:
    """The operands whose banks' gradients one launch computes: those that are projections of one source."""
    parts: dict[int, list[int]] = {}
    for operand, (source, bank) in enumerate(zip(sides.sources, sides.banks, strict=True)):
        if bank is not None:
            parts.setdefault(id(source), []).append(operand)
    for operands in parts.values():
        yield sides.sources[operands[0]], operands


def token_products(sides: Sides) -> Iterator[tuple[int, int | None]]:
    """The operands whose gradients are summed into a source by one launch: k and v of one source together."""
    yield 0, None
    if sides.share:
        yield 1, 2
    else:
        yield 1, None
        yield 2, None
