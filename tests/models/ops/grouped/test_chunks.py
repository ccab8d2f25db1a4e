"""Chunks of the grouped walk: every pair once, within the workspace, tables built once."""

import pytest
import torch

from models.offsets import OffsetGrid
from models.ops.grouped.chunks import MAX_GROUPS, Budget, plan
from models.ops.walk.schedule import Schedule, whole_schedule

CPU = torch.device("cpu")
GRIDS = [
    OffsetGrid((3, 4), class_token=True),
    OffsetGrid((2, 3, 2)),
    OffsetGrid((9,), causal=True),
    OffsetGrid((3, 4), share="clip(1)"),
]


@pytest.mark.parametrize("workspace", [1, 3_000, 1 << 20])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_pair_is_in_one_chunk_in_the_group_of_its_entry(grid, workspace):
    seen = torch.full((grid.num_tokens, grid.num_tokens), -1)
    for chunk in plan(whole_schedule(grid, in_bands=False), 2, Budget(workspace, 10, 50), CPU).chunks:
        query, key = chunk.token["query"].long(), chunk.token["key"].long()
        assert (seen[query, key] == -1).all()
        stops = chunk.stops(1)
        seen[query, key] = chunk.entries.repeat_interleave(stops.diff(prepend=stops.new_zeros(1))).long()
    assert torch.equal(seen, grid.table)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_token_finds_its_pairs(grid):
    for chunk in plan(whole_schedule(grid, in_bands=False), 2, Budget(3_000, 10, 50), CPU).chunks:
        for side in ("query", "key"):
            first, pair = chunk.of[side]
            assert torch.equal(chunk.token[side][pair.long()].long(), tokens_of(first))
            assert sorted(pair.tolist()) == list(range(chunk.pairs))


def tokens_of(first):
    return torch.arange(len(first) - 1).repeat_interleave(first.diff().long())


def test_an_entry_is_written_once_and_then_added_to():
    chunks = plan(whole_schedule(GRIDS[-1], in_bands=False), 1, Budget(1, 10, 50), CPU).chunks
    entries = [entry for chunk in chunks for entry in torch.stack([chunk.entries, chunk.again], 1).tolist()]
    first = [entry for entry, again in entries if not again]
    assert sorted(first) == list(range(GRIDS[-1].num_entries))
    assert len(entries) > len(first)


@pytest.mark.parametrize("workspace", [20_000, 200_000])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_chunk_and_its_entries_fit_the_workspace(batch, workspace):
    chunks, samples = plan(
        whole_schedule(OffsetGrid((8, 8), class_token=True)), batch, Budget(workspace, 10, 800), CPU
    )
    assert 1 <= samples <= batch
    for chunk in chunks:
        assert chunk.pairs * samples * 10 + len(chunk.entries) * 800 <= workspace


def test_the_batch_is_sliced_only_where_one_class_does_not_fit():
    schedule = whole_schedule(OffsetGrid((8, 8)))
    assert plan(schedule, 64, Budget(64 * 64 * 10 + 4 * 800, 10, 800), CPU).samples == 64
    assert plan(schedule, 64, Budget(64 * 64 * 10 + 4 * 800 - 1, 10, 800), CPU).samples == 63


def test_no_chunk_has_more_groups_than_a_grouped_product_takes():
    grid = OffsetGrid((3000,), causal=True)
    chunks = plan(Schedule(grid), 1, Budget(1 << 40, 1, 1), CPU).chunks
    groups = [len(chunk.entries) for chunk in chunks]
    assert MAX_GROUPS / 2 < max(groups) <= MAX_GROUPS
    assert sum(groups) == grid.num_entries


def test_tables_are_built_once():
    budget = Budget(3_000, 10, 50)
    first, second = (plan(whole_schedule(GRIDS[0]), 2, budget, CPU).chunks[0] for _ in range(2))
    assert first is second
    assert first.stops(2) is second.stops(2)
