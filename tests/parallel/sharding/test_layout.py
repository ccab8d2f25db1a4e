"""Which rank holds what: equal work, every value held, and every value counted once."""

import pytest
import torch

from models import GPTConfig, OffsetGrid, Translution, ViTConfig, build_model
from parallel.errors import UserError
from parallel.mesh import Mesh
from parallel.sharding.layout import offset_shares, shards

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


def test_more_offset_ranks_than_residue_classes_are_refused():
    mixer = Translution(8, OffsetGrid((3, 2)), 2, 4)
    assert len(offset_shares(mixer, 6)) == 6
    with pytest.raises(UserError, match=r"parallel.offset=7 is more than the 6 residue classes of a grid of"):
        offset_shares(mixer, 7)


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


def test_a_pull_on_logits_is_refused_where_no_rank_has_all_words():
    net = build_model(GPTConfig.model_validate(GPT | {"logit_pull": 1e-4}))
    assert shards(net, Mesh(2))
    with pytest.raises(UserError, match=r"model.logit_pull=0.0001: needs offset × tensor = 1, not 2"):
        shards(net, Mesh(1, 2))
