"""Initial weights depend on the seed, the parameter's name and the bank's entry, and on nothing else."""

import math

import pytest
import torch

from models import build_model
from models.initial import initial_values, initialise
from parallel.mesh import ParallelConfig
from parallel.sharding.layout import shards
from parallel.sharding.parallelize import parallelize
from tests.parallel.sharding.test_layout import NETS, places, whole


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before():
    one, two = build_model(NETS["vit"]), build_model(NETS["vit"])
    initialise(one, seed=3)
    torch.manual_seed(99)
    initialise(two, seed=3)
    torch.testing.assert_close(dict(one.named_parameters()), dict(two.named_parameters()), rtol=0, atol=0)


def test_seeds_names_and_entries_each_give_other_numbers():
    initial = initial_values(whole("vit"))
    q, k = initial["layers.0.mixer.q_bank"], initial["layers.0.mixer.k_bank"]
    other = initial["layers.1.mixer.q_bank"]
    drawn = [q(0), q(1), k(0), other(0)]
    for place, one in enumerate(drawn):
        assert all(not (one == two).any() for two in drawn[:place])
    entries = q(0).flatten(1)
    assert len({tuple(entry.tolist()) for entry in entries}) == len(entries)


def test_entries_are_drawn_alone_as_in_the_whole_bank():
    q = initial_values(whole("vit"))["layers.0.mixer.q_bank"]
    assert torch.equal(q(7, [4, 0, 11]), q(7)[[4, 0, 11]])


@pytest.mark.parametrize("name", NETS)
def test_a_rank_without_others_begins_with_its_part_of_the_whole_net(name):
    """Parts drawn as parallelize draws them, for every place of a mesh, against the whole net."""
    net = whole(name)
    initial = initial_values(net)
    alone = parallelize(whole(name), places(1, 1)[0], ParallelConfig(), 5, torch.device("cpu"))
    for mesh in places(2, 2):
        for parameter, shard in shards(net, mesh).items():
            expected = alone.get_parameter(parameter).detach()
            expected = expected if shard.entries is None else expected[list(shard.entries)]
            assert torch.equal(shard.take(initial[parameter](5, shard.entries)), shard.take(expected))


def test_distributions_are_those_of_the_layers():
    net = build_model(NETS["vit"].model_copy(update={"width": 64, "mlp": 256}))
    initialise(net, seed=0)
    weights = dict(net.named_parameters())
    for name, fan_in in {"layers.0.mixer.q_bank": 64, "layers.0.mlp.down.weight": 256}.items():
        bound = 1 / math.sqrt(fan_in)
        assert weights[name].abs().max() <= bound
        assert weights[name].abs().max() > 0.98 * bound
        assert weights[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(weights[name].mean().item()) < 0.02 * bound
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            assert (weight == 1).all()
        if name.endswith("norm.bias"):
            assert (weight == 0).all()
    embedding = build_model(NETS["gpt"].model_copy(update={"vocabulary": 500}))
    initialise(embedding, seed=0)
    assert embedding.get_parameter("embedding.weight").std().item() == pytest.approx(0.02, rel=0.1)
