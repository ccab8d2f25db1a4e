"""Which rank holds what: equal work, every value held, and every value counted once."""

from collections import Counter

import pytest
import torch

from models import GPTConfig, OffsetGrid, ViTConfig, build_model
from parallel.errors import UserError
from parallel.mesh import Mesh
from parallel.sharding.layout import offset_share, shards

GRIDS = {
    "7x7": OffsetGrid((7, 7)),
    "14x14 with class token": OffsetGrid((14, 14), class_token=True),
    "odd sides": OffsetGrid((5, 8)),
    "line with class token": OffsetGrid((9,), class_token=True),
    "cube": OffsetGrid((2, 3, 4)),
    "causal even": OffsetGrid((32,), causal=True),
    "causal odd": OffsetGrid((33,), causal=True),
    "shared": OffsetGrid((6, 6), class_token=True, share="clip(2)"),
}
MIXER = {"kind": "translution", "heads": 4, "head_dim": 2}
VIT = {"image_size": 12, "patch_size": 4, "channels": 1, "classes": 5, "width": 8, "depth": 2, "mlp": 16}
GPT = {"vocabulary": 11, "tokens": 9, "width": 8, "depth": 2, "mlp": 16, "mixer": MIXER}
NETS = {
    "vit": ViTConfig.model_validate(VIT | {"mixer": MIXER}),
    "alpha": ViTConfig.model_validate(VIT | {"mixer": MIXER | {"rank": 3}}),
    "shared": ViTConfig.model_validate(VIT | {"mixer": MIXER | {"share": "clip(1)"}}),
    "gpt": GPTConfig.model_validate(GPT),
    "tied gpt": GPTConfig.model_validate(GPT | {"tie_embeddings": True}),
}


def places(offset, tensor):
    return [Mesh(1, offset, tensor, rank) for rank in range(offset * tensor)]


def whole(name):
    with torch.device("meta"):
        return build_model(NETS[name])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_pairs_are_dealt_once_and_evenly(grid, ranks):
    shares = offset_share(grid, ranks)
    dealt = Counter(block for share in shares for block in share.blocks)
    assert dealt == Counter(b for blocks in (*grid.classes, grid.special_blocks) for b in blocks)
    assert sum(share.pairs for share in shares) == grid.num_pairs
    a_class = max(sum(block.pairs for block in blocks) for blocks in grid.classes)
    pairs = [share.pairs for share in shares]
    assert max(pairs) - min(pairs) <= a_class


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_entries_are_held_once_and_evenly(grid, ranks):
    """A class of a d-dimensional grid has up to 2^d entries; shared entries are held by all."""
    shares = offset_share(grid, ranks)
    held = [share.entries for share in shares if share.entries is not None]
    if grid.share != "none":
        assert held == []
        return
    assert len(held) == ranks
    assert sorted(entry for entries in held for entry in entries) == list(range(grid.num_entries))
    sizes = [len(entries) for entries in held]
    assert max(sizes) - min(sizes) <= 2 ** len(grid.shape)


def test_a_rank_for_every_class_and_no_more():
    grid = OffsetGrid((3, 2))
    assert all(len(share.classes) == 1 for share in offset_share(grid, 6))
    with pytest.raises(UserError, match=r"parallel.offset=7 is more than the 6 residue classes of a grid of"):
        offset_share(grid, 7)


@pytest.mark.parametrize(("offset", "tensor"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("name", NETS)
def test_the_ranks_count_every_number_once(name, offset, tensor):
    """Padding of the vocabulary aside, which is no number of the net."""
    net = whole(name)
    counted = 0.0
    for mesh in places(offset, tensor):
        for shard in shards(net, mesh).values():
            if shard.counted(mesh):
                within = 1.0 if shard.dim is None else shard.inside[1] / shard.shape[shard.dim]
                counted += shard.numel * within
    assert counted == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("offset", "tensor"), [(2, 1), (1, 2), (2, 2), (4, 2)])
@pytest.mark.parametrize("name", NETS)
def test_every_value_is_held_somewhere_and_copied_where_the_layout_says(name, offset, tensor):
    """A rank's part of a parameter that counts its numbers: how often each is held is the same
    everywhere in the parameter, for a copy is of the whole or of a whole slice."""
    net = whole(name)
    for parameter, full in net.named_parameters():
        marks = torch.zeros(full.shape)
        for mesh in places(offset, tensor):
            shard = shards(net, mesh)[parameter]
            index = torch.arange(full.numel()).view(full.shape)
            rows = index if shard.entries is None else index[list(shard.entries)]
            if shard.dim is not None:
                rows = rows.narrow(shard.dim, *shard.inside)
            marks.view(-1)[rows.flatten()] += 1
        assert marks.min() >= 1
        assert marks.min() == marks.max()


@pytest.mark.parametrize(
    ("change", "mesh", "message"),
    [
        ({"mlp": 15}, Mesh(1, 2, 1), "mlp=15 is not divisible by offset × tensor = 2 ranks"),
        ({}, Mesh(1, 1, 3), "heads=4 is not divisible by parallel.tensor=3"),
        ({}, Mesh(1, 16, 1), "parallel.offset=16 is more than the 9 residue classes"),
    ],
)
def test_a_net_that_does_not_divide_is_refused(change, mesh, message):
    with torch.device("meta"):
        net = build_model(NETS["vit"].model_copy(update=change))
    with pytest.raises(UserError, match=message):
        shards(net, mesh)
