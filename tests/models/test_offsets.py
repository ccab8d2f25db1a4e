"""Every pair has one entry, one block and one residue class."""

import itertools

import pytest
import torch

from models import OffsetGrid
from models.offsets import MASKED

GRIDS = [
    OffsetGrid(shape, causal=causal, class_token=class_token)
    for shape in [(1,), (7,), (8,), (3, 4), (5, 5), (1, 5), (2, 3, 4)]
    for causal, class_token in [(False, False), (False, True), (True, False)]
    if not causal or len(shape) == 1
]


def block_pairs(grid, block):
    """The (query token, key token) pairs of a block, read straight from its rectangles."""
    tokens = torch.arange(grid.grid_tokens).view(grid.shape) + grid.class_token
    queries, keys = (
        [0] if side is None else tokens[tuple(slice(*s) for s in side)].flatten().tolist()
        for side in (block.queries, block.keys)
    )
    if len(queries) != len(keys):
        return list(itertools.product(queries, keys))
    return list(zip(queries, keys, strict=True))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_cover_each_pair_once_with_the_entry_of_its_offset(grid):
    seen = torch.full((grid.num_tokens, grid.num_tokens), MASKED)
    for block in itertools.chain(*grid.classes, grid.special_blocks):
        pairs = block_pairs(grid, block)
        assert len(pairs) == block.pairs
        for query, key in pairs:
            assert seen[query, key] == MASKED
            seen[query, key] = block.entry
    assert torch.equal(seen, grid.table)
    assert sum(b.pairs for b in itertools.chain(*grid.classes, grid.special_blocks)) == grid.num_pairs


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equal_offsets_and_only_they_share_an_entry(grid):
    first = int(grid.class_token)
    positions = list(itertools.product(*map(range, grid.shape)))
    entry_of = {}
    for (i, p), (j, r) in itertools.product(enumerate(positions), repeat=2):
        entry = grid.table[first + i, first + j].item()
        if entry == MASKED:
            assert grid.causal
            assert j > i
            continue
        delta = tuple(a - b for a, b in zip(p, r, strict=True))
        assert entry_of.setdefault(delta, entry) == entry == grid.entry(delta)
    specials = 3 * grid.class_token
    assert len(set(entry_of.values())) == len(entry_of) == grid.num_offsets - specials
    assert grid.num_entries == grid.num_offsets


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_a_class_of_a_full_grid_meets_every_token_once_on_either_side(shape):
    grid = OffsetGrid(shape)
    assert len(grid.classes) == grid.num_tokens
    for blocks in grid.classes:
        pairs = [pair for block in blocks for pair in block_pairs(grid, block)]
        for side in zip(*pairs, strict=True):
            assert sorted(side) == list(range(grid.num_tokens))


@pytest.mark.parametrize(("n", "sizes"), [(5, [5, 5, 5]), (6, [6, 6, 6, 3])])
def test_causal_classes_have_n_pairs_each(n, sizes):
    assert [sum(b.pairs for b in blocks) for blocks in OffsetGrid((n,), causal=True).classes] == sizes


def test_class_token_is_token_0_with_three_offsets_of_its_own():
    table = OffsetGrid((2, 2), class_token=True).table
    assert table[0].tolist() == [9, 10, 10, 10, 10]
    assert table[:, 0].tolist() == [9, 11, 11, 11, 11]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": ()}, r"grid shape \(\)"),
        ({"shape": (3, 0)}, r"grid shape \(3, 0\)"),
        ({"shape": (3, 3), "causal": True}, "only sequences"),
        ({"shape": (3,), "causal": True, "class_token": True}, "no class token"),
        ({"shape": (3,), "share": "clip(-1)"}, r"share 'clip\(-1\)': .*clip\(RADIUS\) is needed"),
    ],
)
def test_grids_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OffsetGrid(**arguments)
