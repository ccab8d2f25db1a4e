"""Bank entries by pair, or scattered, are computed exactly, and divide over parts like those of offsets."""

import pytest
import torch

from models import OffsetGrid, TokenGrid, Translution, ViTConfig
from models.ablations.pair_grid import PairGrid
from models.dealing import deal
from models.mixers.translution import TranslutionConfig
from models.ops import naive
from models.ops.walk.schedule import whole_schedule

GRIDS = [((3, 2), False), ((3, 2), True), ((5,), True), ((2, 3, 2), False)]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(("shape", "class_token"), GRIDS)
def test_the_operator_is_its_definition(shape: tuple[int, ...], class_token: bool, scattered: bool):
    torch.manual_seed(0)
    grid = PairGrid(shape, class_token, scattered)
    layer = Translution(6, grid, 2, 4, kernel="loop").double()
    x = torch.randn(3, grid.num_tokens, 6, dtype=torch.double, requires_grad=True)
    banks = [layer.get_parameter(f"{name}_bank") for name in "qkv"]
    expected = layer.out(naive.translution(x, *banks, grid.table, 2))
    outs = layer(x)
    torch.testing.assert_close(outs, expected, rtol=0, atol=1e-10)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *banks]) for y in (outs, expected))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-10)


def test_as_many_matrices_as_offsets_serve_equally_many_pairs():
    offsets, scattered = OffsetGrid((4, 3), class_token=True), PairGrid((4, 3), True, scattered=True)
    counts = scattered.table.flatten().bincount()
    assert len(counts) == scattered.num_entries == offsets.num_entries
    assert counts.max() - counts.min() <= 1
    first = offsets.table == offsets.entry((0, 0))
    assert len(scattered.table[first].unique()) > 3  # pairs of one offset have many entries


@pytest.mark.parametrize("scattered", [False, True])
def test_parts_have_every_pair_once(scattered: bool):
    schedule = whole_schedule(PairGrid((3, 3), True, scattered))
    shares = deal(schedule, 3)
    blocks = [block for share in shares for block in share.blocks]
    assert len(blocks) == len({(block.queries, block.keys) for block in blocks}) == 100
    held = [share.entries for share in shares]
    if scattered:
        assert held == [None] * 3  # an entry has pairs in several parts: all hold all
    else:
        assert sorted(entry for entries in held for entry in entries) == list(range(100))


@pytest.mark.parametrize(
    ("options", "why"),
    [({"share": "log"}, "needs share: none"), ({"kernel": "fused"}, "needs loop")],
)
def test_options_of_offsets_are_refused(options: dict[str, str], why: str):
    with pytest.raises(ValueError, match=why):
        TranslutionConfig(index="pair", **options)


def test_a_language_net_is_refused():
    reason = TranslutionConfig(index="pair").refuses_tokens(TokenGrid((8,), causal=True))
    assert reason
    assert "no causal form" in reason
    assert ViTConfig(mixer=TranslutionConfig(index="scattered"))
