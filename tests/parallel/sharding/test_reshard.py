"""States joined over a model-parallel group and cut again: nothing is lost, on any mesh."""

import pytest
import torch

from models import build_model
from parallel.mesh import Mesh
from parallel.sharding.layout import shards
from parallel.sharding.reshard import moved_state
from tests.parallel.sharding.test_layout import NETS, places, whole

MESHES = [(2, 1), (1, 2), (2, 2), (4, 1), (3, 2), (4, 2)]


def state_of(net):
    """Every number of every tensor differs."""
    count, parameters = 0, {}
    for name, parameter in net.named_parameters():
        parameters[name] = {}
        for key in ("weight", "exp_avg", "exp_avg_sq"):
            numbers = torch.arange(count, count + parameter.numel(), dtype=torch.float64)
            parameters[name][key] = numbers.view(parameter.shape)
            count += parameter.numel()
    return {"parameters": parameters, "steps_done": 5}


def assert_same(one, other):
    assert one["steps_done"] == other["steps_done"]
    torch.testing.assert_close(one["parameters"], other["parameters"], rtol=0, atol=0)


def divisible(name):
    """The net with a feed-forward that divides by three as well."""
    with torch.device("meta"):
        return build_model(NETS[name].model_copy(update={"mlp": 48}))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", NETS)
def test_cut_then_joined_is_the_same(name, mesh):
    net = divisible(name)
    state = state_of(net)
    parts = [moved_state([state], net, Mesh(), place) for place in places(*mesh)]
    for place, part in zip(places(*mesh), parts, strict=True):
        shapes = {n: tuple(entry["weight"].shape) for n, entry in part["parameters"].items()}
        assert shapes == {n: shard.shape for n, shard in shards(net, place).items()}
    assert_same(moved_state(parts, net, Mesh(1, *mesh), Mesh()), state)


@pytest.mark.parametrize(("before", "after"), [((2, 1), (1, 2)), ((2, 2), (4, 1)), ((4, 1), (1, 1))])
def test_parts_of_one_mesh_become_those_of_another(before, after):
    """The vocabulary of 11 is padded to 12 on either mesh."""
    net = whole("gpt")
    state = state_of(net)
    parts = [moved_state([state], net, Mesh(), place) for place in places(*before)]
    for place in places(*after):
        assert_same(
            moved_state(parts, net, Mesh(1, *before), place), moved_state([state], net, Mesh(), place)
        )


def test_a_vocabulary_so_short_that_ranks_hold_padding_only():
    """11 words in runs of two over eight ranks: the sixth holds one, the last two none."""
    net = whole("gpt")
    held = [shards(net, place)["embedding.weight"] for place in places(4, 2)]
    assert [shard.inside[1] for shard in held] == [2, 2, 2, 2, 2, 1, 0, 0]


def test_the_padding_of_a_vocabulary_is_zero_and_is_not_saved():
    net = whole("gpt")
    state = state_of(net)
    parts = [moved_state([state], net, Mesh(), place) for place in places(4, 1)]
    last = parts[3]["parameters"]["embedding.weight"]["weight"]
    assert last.shape == (3, 8)
    assert not last[2].any()
    last[2] = 7.0
    assert_same(moved_state(parts, net, Mesh(1, 4, 1), Mesh()), state)
