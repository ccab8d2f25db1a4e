"""The walk over the pairs: every pair once, tables built once, within the workspace."""

import itertools

import pytest
import torch

from models import OffsetGrid, Translution
from models.offsets import MASKED
from models.ops.walk.rows import view_tokens
from models.ops.walk.schedule import CPU_CHUNK_BYTES, whole_schedule
from tests.models.test_offsets import GRIDS

CPU, DEVICE = torch.device("cpu"), torch.device("meta")
ONE_CLASS, ALL = "one class", "all classes"


def chunks_of(grid, size):
    workspace = {"blocks": 1, ONE_CLASS: grid.grid_tokens, ALL: 1 << 20}[size]
    return whole_schedule(grid, in_bands=False).chunks(1, 1, workspace, CPU)


def pairs_of(chunk, grid):
    """(query, key) of every pair, by reading the numbers of the tokens."""
    numbers = view_tokens(torch.arange(grid.num_tokens)[:, None], grid)
    sides = torch.broadcast_tensors(chunk.rows("query", numbers), chunk.rows("key", numbers))
    return [side.flatten().tolist() for side in sides]


@pytest.mark.parametrize("size", ["blocks", ONE_CLASS, ALL])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_chunks_hold_each_pair_once_and_their_runs_its_entry(grid, size):
    seen = torch.full((grid.num_tokens, grid.num_tokens), MASKED)
    for chunk in chunks_of(grid, size):
        queries, keys = pairs_of(chunk, grid)
        assert len(queries) == chunk.pairs
        for spans, side, tokens in (
            (chunk.runs["query"].spans, "query", queries),
            (chunk.runs["key"].spans, "key", keys),
        ):
            entries = [span.entry for span in spans for _ in range(span.start, span.stop)]
            rows = tokens if len(entries) == len(tokens) else tokens[:1]  # a class token's side is one row
            assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
            assert len(entries) == len(rows)
            for entry, query, key in zip(itertools.cycle(entries), queries, keys, strict=False):
                assert entry == grid.table[query, key]
                if side == "query":
                    assert seen[query, key] == MASKED
                    seen[query, key] = entry
    assert torch.equal(seen, grid.table)


@pytest.mark.parametrize("size", ["blocks", ONE_CLASS, ALL])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_layers_align_each_pair_with_its_query(grid, size):
    """Layer by layer, a query meets every key of its own once; elsewhere the value is missing."""
    N = grid.num_tokens
    met = torch.zeros(N, N, dtype=torch.long)
    for chunk in chunks_of(grid, size):
        numbers = view_tokens(torch.arange(N)[:, None], grid)
        pairs = chunk.rows("query", numbers) * N + chunk.rows("key", numbers)
        layers = chunk.layers(pairs, MASKED)
        queries = chunk.queries(numbers).expand(layers.shape)
        for query, pair in zip(queries.flatten().tolist(), layers.flatten().tolist(), strict=True):
            if pair != MASKED:
                assert pair // N == query
                met[query, pair % N] += 1
    assert torch.equal(met, (grid.table != MASKED).long())


def test_tables_are_built_once_per_grid_and_shared_by_all_layers():
    layers = [Translution(8, OffsetGrid((3, 4)), 2, 4) for _ in range(2)]
    assert layers[0].schedule is layers[1].schedule
    first, second = (layer.schedule.chunks(2, 100, 1 << 20, CPU) for layer in layers)
    assert first is second
    runs = first[0].runs["key"]
    assert runs.pieces(2) is runs.pieces(2)


@pytest.mark.parametrize("grid", GRIDS[2:], ids=str)
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_a_step_fits_the_workspace_whenever_one_block_of_one_sample_does(grid, samples):
    schedule = whole_schedule(grid, in_bands=False)
    for workspace in (1, 10 * schedule.largest_block, 40 * schedule.largest_block, 10_000, 1_000_000):
        step = schedule.batch_slice(samples, 10, workspace)
        assert 1 <= step <= samples
        largest = max(chunk.pairs for chunk in schedule.chunks(step, 10, workspace, DEVICE))
        if workspace >= 10 * schedule.largest_block:
            assert largest * step * 10 <= workspace
        else:
            assert (largest, step) == (schedule.largest_block, 1)


def test_chunks_stay_in_one_core_s_caches_on_the_cpu_only():
    schedule = whole_schedule(OffsetGrid((8, 8)))
    pair_bytes = CPU_CHUNK_BYTES // (64 * 2)
    pairs = {
        device.type: max(c.pairs for c in schedule.chunks(1, pair_bytes, 8 * CPU_CHUNK_BYTES, device))
        for device in (CPU, DEVICE)
    }
    assert pairs == {"cpu": 2 * 64, "meta": 16 * 64}
