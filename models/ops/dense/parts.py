"""Separates a recipe into dense and relative parts, and cuts the work to fit the workspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from models.offsets import OffsetGrid
from models.ops.dense.strips import StripChunk, strip_chunks
from models.ops.device import device_type, on_host
from models.ops.recipe import Recipe, workspace_bytes
from models.ops.walk.operands import pair_bytes
from models.ops.walk.schedule import CPU_CHUNK_BYTES, Schedule

BUFFERS = 4  # numbers of a pair and head that are held at once


class Parts(NamedTuple):
    """A recipe's parts.

    dense_logits, dense_values   the sources of each segment; values with their place among all
    logits, values, relative     recipes of the relative logits, of the relative values, and of both
    places                       of the relative values among all
    """

    dense_logits: list[tuple[int, int]]
    dense_values: list[tuple[int, int]]
    logits: Recipe
    values: Recipe
    relative: Recipe
    places: list[int]


def has_dense_part(recipe: Recipe) -> bool:
    parts = parts_of(recipe)
    return bool(parts.dense_logits or parts.dense_values)


@lru_cache
def parts_of(recipe: Recipe) -> Parts:
    dense_logits = [(q.source, k.source) for q, k in recipe.logits if q.bank is None and k.bank is None]
    logits = tuple((q, k) for q, k in recipe.logits if q.bank is not None or k.bank is not None)
    dense_values = [(i, v.source) for i, v in enumerate(recipe.values) if v.bank is None]
    places = [i for i, v in enumerate(recipe.values) if v.bank is not None]
    values = tuple(recipe.values[i] for i in places)
    return Parts(
        dense_logits,
        dense_values,
        replace(recipe, logits=logits, values=()),
        replace(recipe, logits=(), values=values),
        replace(recipe, logits=logits, values=values),
        places,
    )


class Queries(NamedTuple):
    """Some queries and all their pairs.

    tokens    of the queries; the class token's with the first
    chunks    the pairs that are here, with the index [P] of each among [I·N]
    missing   the index of those that are not; None if there are none
    """

    tokens: slice
    chunks: list[tuple[StripChunk, Tensor]]
    missing: Tensor | None


@lru_cache(maxsize=16)
@on_host
def queries_of(schedule: Schedule, rows: int, largest: int, device: torch.device) -> list[Queries]:
    """All queries, `rows` of the grid's first dimension at a time, in chunks of at most `largest` pairs."""
    grid, found = schedule.grid, []
    special, rest = int(grid.class_token), grid.grid_tokens // grid.shape[0]
    for start in range(0, grid.shape[0], rows):
        stop = min(start + rows, grid.shape[0])
        tokens = slice(start * rest + special * (start > 0), stop * rest + special)
        chunks = list(strip_chunks(schedule, (start, stop), tokens.start, largest))
        absent = torch.ones((tokens.stop - tokens.start) * grid.num_tokens, dtype=torch.bool)
        for chunk in chunks:
            absent[chunk.index] = False
        missing = absent.nonzero().squeeze(1).to(device) if absent.any() else None
        found.append(Queries(tokens, [(chunk, chunk.index.to(device)) for chunk in chunks], missing))
    return found


class Cut(NamedTuple):
    """Samples, rows of the grid's first dimension, and relative pairs that are worked on at once."""

    samples: int
    rows: int
    largest: int


def cut_of(
    grid: OffsetGrid, batch: int, heads: int, itemsize: int, pair_bytes: int, workspace: int, cpu: bool
) -> Cut:
    """As many samples, or else queries, as fit half the workspace; chunks of pairs get the other half."""
    row_bytes, half = BUFFERS * grid.num_tokens * heads * itemsize, workspace // 2
    samples = min(batch, max(1, half // (grid.num_tokens * row_bytes)))
    rest = grid.grid_tokens // grid.shape[0]
    rows = min(grid.shape[0], max(1, half // (samples * rest * row_bytes)))
    limit = min(half, CPU_CHUNK_BYTES) if cpu else half
    return Cut(samples, rows, max(1, limit // (samples * pair_bytes)))


def steps(
    parts: Parts, schedule: Schedule, sources: Sequence[Tensor], banks: Sequence[Tensor]
) -> Iterator[tuple[slice, Queries]]:
    """All samples and queries, as many at a time as fit the workspace."""
    recipe, batch, device = parts.relative, sources[0].shape[1], sources[0].device
    itemsize = torch.promote_types(sources[0].dtype, torch.float32).itemsize
    bytes_of_pair = pair_bytes(recipe, sources, banks)
    cut = cut_of(
        schedule.grid,
        batch,
        recipe.heads,
        itemsize,
        bytes_of_pair,
        workspace_bytes(recipe.workspace, device_type(device)),
        device_type(device) == "cpu",
    )
    for start in range(0, batch, cut.samples):
        for queries in queries_of(schedule, cut.rows, cut.largest, device):
            yield slice(start, min(start + cut.samples, batch)), queries
