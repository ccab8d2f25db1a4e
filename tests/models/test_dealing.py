"""Parts of a schedule: every pair in one of them, about equal work, and the entries that each needs."""

import pytest
import torch

from models import OffsetGrid
from models.dealing import deal
from models.offsets import MASKED
from models.ops.walk.schedule import whole_schedule

FULL = [
    OffsetGrid((4, 4)),
    OffsetGrid((3, 5), class_token=True),
    OffsetGrid((17,), causal=True),
    OffsetGrid((16,), causal=True),
    OffsetGrid((2, 3, 4)),
]
SHARED = [
    OffsetGrid((14, 14), class_token=True, share="log"),
    OffsetGrid((8, 8), class_token=True, share="clip(0)"),
    OffsetGrid((64,), causal=True, share="log"),
    OffsetGrid((64,), causal=True, share="clip(3)"),
    OffsetGrid((5, 6), share="clip(1)"),
]


def entries_of_pairs(grid, blocks):
    """entry[N, N] of the pairs of some blocks, MASKED elsewhere; fails for a pair met twice."""
    tokens = torch.arange(grid.num_tokens)[int(grid.class_token) :].view(grid.shape)
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid.shape), indexing="ij"), -1)
    found = torch.full((grid.num_tokens, grid.num_tokens), MASKED)

    def of(rectangle):
        if rectangle is None:
            return [(0, None)]
        box = tuple(slice(*side) for side in rectangle)
        return list(zip(tokens[box].flatten().tolist(), places[box].flatten(0, -2).tolist(), strict=True))

    for block in blocks:
        for query, p in of(block.queries):
            for key, r in of(block.keys):
                if p is not None and r is not None:
                    delta = [a - b for a, b in zip(p, r, strict=True)]
                    band = block.band or [
                        (a - b,) * 2 for (a, _), (b, _) in zip(block.queries, block.keys, strict=True)
                    ]
                    if not all(lo <= d <= hi for d, (lo, hi) in zip(delta, band, strict=True)):
                        continue
                assert found[query, key] == MASKED
                found[query, key] = block.entry
    return found


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("grid", FULL + SHARED, ids=str)
def test_every_pair_is_in_one_part_with_its_entry(grid, parts):
    shares = deal(whole_schedule(grid), parts)
    assert torch.equal(entries_of_pairs(grid, [b for share in shares for b in share.blocks]), grid.table)
    for share in shares:
        if share.entries is not None:
            assert {block.entry for block in share.blocks} == set(share.entries)


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
@pytest.mark.parametrize("grid", FULL, ids=str)
def test_pairs_and_entries_of_a_full_grid_are_even(grid, parts):
    shares = deal(whole_schedule(grid), parts)
    a_class = max(sum(block.pairs for block in blocks) for blocks in grid.classes)
    pairs, held = [share.pairs for share in shares], [len(share.entries) for share in shares]
    assert max(pairs) - min(pairs) <= a_class
    assert sum(held) == grid.num_entries
    assert max(held) - min(held) <= 2 ** len(grid.shape)


def test_shared_entries_are_held_once_where_the_work_is_even():
    """ViT-B/16 with log: 84 entries over 8 parts."""
    grid = OffsetGrid((14, 14), class_token=True, share="log")
    schedule = whole_schedule(grid, 384.0)
    shares = deal(schedule, 8)
    assert sorted(entry for share in shares for entry in share.entries) == list(range(grid.num_entries))
    work = [sum(map(schedule.work, share.blocks)) for share in shares]
    assert max(work) < 1.05 * sum(work) / 8


def test_few_shared_entries_are_divided_and_held_by_all():
    """Four entries cannot be dealt to eight parts."""
    schedule = whole_schedule(OffsetGrid((1024,), causal=True, share="clip(3)"), 96.0)
    shares = deal(schedule, 8)
    assert all(share.entries is None for share in shares)
    work = [sum(map(schedule.work, share.blocks)) for share in shares]
    assert max(work) < 1.3 * sum(work) / 8
