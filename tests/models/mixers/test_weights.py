"""`Mixer.weights` are the weights with which `forward` sums values."""

import pytest
import torch

from models import OffsetGrid, TokenGrid, Translution
from models.mixers.attention import AttentionConfig
from models.mixers.structure.layer import StructureConfig
from models.ops import naive
from models.positions.learned import NoPosition
from models.positions.relative.botnet import BotnetPosition
from models.positions.relative.gpsa import GatedPosition
from models.positions.relative.shaw import ShawPosition
from models.positions.relative.swin import SwinPosition


@pytest.mark.parametrize("share", ["none", "log"])
def test_of_translution_are_those_of_its_definition(share: str):
    torch.manual_seed(0)
    grid = OffsetGrid((3, 2), class_token=True, share=share)
    layer = Translution(6, grid, 2, 4).double()
    x = torch.randn(2, 7, 6, dtype=torch.double)
    q, k = (
        naive.per_pair(x, layer.get_parameter(f"{name}_bank"), grid.table, token).unflatten(-1, (2, 4))
        for name, token in (("q", "i"), ("k", "j"))
    )
    expected = naive.softmax_weights((q * k).sum(-1) / 2, grid.table).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer.weights(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 2])
def test_with_them_shared_values_give_the_outputs(rank: int | None):
    torch.manual_seed(0)
    layer = Translution(6, OffsetGrid((4,), causal=True), 2, 3, relative="qk", rank=rank).double()
    x = torch.randn(2, 4, 6, dtype=torch.double)
    v = layer.get_submodule("v")(x).unflatten(-1, (2, 3)).transpose(1, 2)
    summed = (layer.weights(x) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.out(summed), rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", [NoPosition(), SwinPosition(), GatedPosition(), BotnetPosition()])
def test_of_attention_give_the_outputs(position):
    torch.manual_seed(0)
    mixer = AttentionConfig(heads=2, head_dim=3).build(6, TokenGrid((3, 2)), position).double()
    for p in mixer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 6, 6, dtype=torch.double)
    v = mixer.v(x).unflatten(-1, (2, 3)).transpose(1, 2)
    summed = (mixer.weights(x) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.out(summed), rtol=0, atol=1e-12)


def test_shaw_adds_to_the_values_and_has_none():
    tokens = TokenGrid((5,), causal=True)
    mixer = AttentionConfig(heads=2, head_dim=4).build(8, tokens, ShawPosition())
    assert mixer.weights(torch.randn(1, 5, 8)) is None


def test_only_heads_that_shift_have_mixtures():
    for heads, shape in ((2, (2, 3, 3)), (0, None)):
        config = StructureConfig(attention_heads=2, shift_heads=heads, reach=1, head_dim=2)
        shifts = config.build(4, TokenGrid((3, 3)), NoPosition()).shifts()
        assert (None if shifts is None else tuple(shifts.shape)) == shape
