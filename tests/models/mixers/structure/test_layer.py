"""The layer of structure embedding is its definition, and what it generalises."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import Attention, GPTConfig, OffsetGrid, TokenGrid, Translution, ViTConfig, build_model
from models.initial import initialise
from models.mixers.cost import Cost, Load
from models.mixers.structure.layer import Structure, StructureConfig
from models.mixers.structure.product import structured
from models.positions.learned import NoPosition

DIM = 6
TOKENS = {
    "sequence": TokenGrid((7,)),
    "causal": TokenGrid((7,), causal=True),
    "grid": TokenGrid((3, 5)),
    "3-D": TokenGrid((2, 3, 2)),
}


def layer(tokens: TokenGrid, **options: Any) -> Structure:
    torch.manual_seed(0)
    built = StructureConfig(head_dim=4, **options).build(DIM, tokens, NoPosition()).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    return built


@pytest.mark.parametrize("factored", [True, False], ids=["factored", "full"])
@pytest.mark.parametrize("heads", [(2, 0), (0, 3), (2, 2)], ids=["attention", "shifts", "both"])
@pytest.mark.parametrize("name", TOKENS)
def test_a_layer_is_the_sum_over_its_structure_matrices(name: str, heads: tuple[int, int], factored: bool):
    tokens = TOKENS[name]
    options = {"every_shift": heads == (2, 2), "reach": 1 if name == "3-D" else 2, "factored": factored}
    mixer = layer(tokens, attention_heads=heads[0], shift_heads=heads[1], **options)
    x = torch.randn(2, tokens.num_tokens, DIM, dtype=torch.float64, requires_grad=True)
    wanted = structured(x, mixer.matrices(x), mixer.thetas()) + mixer.bias
    found, dy = mixer(x), torch.randn_like(x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    inputs = [x, *mixer.parameters()]
    ours, theirs = (torch.autograd.grad(y, inputs, dy) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_every_shift_is_a_zero_padded_convolution():
    tokens = TokenGrid((4, 5))
    mixer = layer(tokens, attention_heads=0, shift_heads=0, every_shift=True, reach=1, factored=False)
    x = torch.randn(2, 20, DIM, dtype=torch.float64)
    # A convolution's tap (u, v) reads the key at query + (u − 1, v − 1): the offset δ is (1 − u, 1 − v).
    kernel = mixer.thetas().view(3, 3, DIM, DIM).flip(0, 1).permute(3, 2, 0, 1)
    image = x.transpose(1, 2).unflatten(2, (4, 5))
    wanted = F.conv2d(image, kernel, mixer.bias, padding=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mixer(x), wanted)
    assert sum(p.numel() for p in mixer.parameters()) == sum(
        p.numel() for p in torch.nn.Conv2d(DIM, DIM, 3).parameters()
    )


@pytest.mark.parametrize("name", ["causal", "grid"])
def test_attention_heads_alone_are_multi_head_attention(name: str):
    tokens = TOKENS[name]
    mixer = layer(tokens, attention_heads=3, shift_heads=0)
    attention = Attention(DIM, tokens, 3, 4).double()
    ours = dict(mixer.named_parameters())
    theirs = {"q": "q", "k": "k", "v": "values.attention", "out": "outs.attention"}
    state = {f"{name}.weight": ours[f"{own}.weight"] for name, own in theirs.items()}
    attention.load_state_dict(state | {"out.bias": ours["bias"]})
    x = torch.randn(2, tokens.num_tokens, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), attention(x))


def test_every_shift_over_the_whole_grid_is_translution_of_values_without_content():
    """Translution of v alone whose logits are 0 weighs every pair by 1/N."""
    tokens = TokenGrid((3, 2))
    translution = Translution(DIM, OffsetGrid((3, 2)), 1, DIM, relative="v").double()
    mixer = layer(tokens, attention_heads=0, shift_heads=0, every_shift=True, reach=None, factored=False)
    with torch.no_grad():
        translution.q.weight.zero_()
        theta_KCD = translution.v_bank @ translution.out.weight.T / tokens.num_tokens
        mixer.outs["every"].weight.copy_(theta_KCD.flatten(0, 1).T)
        mixer.bias.copy_(translution.out.bias)
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), translution(x))


def test_translution_of_values_is_the_product_of_attention_and_shifts():
    """Y = Σ_δ (α ⊙ S_δ) X Θ_δ."""
    tokens = TokenGrid((3, 2))
    translution = Translution(DIM, OffsetGrid((3, 2)), 1, DIM, relative="v").double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    shifts = layer(tokens, attention_heads=0, shift_heads=0, every_shift=True, reach=None).matrices(x)
    weights = (translution.q(x) @ translution.k(x).transpose(1, 2) / math.sqrt(DIM)).softmax(-1)
    wanted = structured(x, weights[:, None] * shifts, translution.v_bank @ translution.out.weight.T)
    torch.testing.assert_close(translution(x), wanted + translution.out.bias)


def test_the_mixtures_of_shifts_can_be_read():
    mixer = layer(TokenGrid((4, 5)), attention_heads=0, shift_heads=2, reach=[1, 2])
    found = mixer.mixtures()
    assert found.shape == (2, 3, 5)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    x, query = torch.zeros(1, 20, DIM, dtype=torch.float64), (1, 2)
    # The weight of the key one row up and two columns right: δ = query − key = (1, −2).
    key = (query[0] - 1, query[1] + 2)
    assert mixer.matrices(x)[0, 1, query[0] * 5 + query[1], key[0] * 5 + key[1]] == found[1, 1 + 1, -2 + 2]


def test_costs_are_known_and_linear_in_the_tokens_for_shifts():
    def cost(side: int, parts: int = 1) -> Cost:
        config = StructureConfig(attention_heads=0, shift_heads=2, head_dim=4, reach=1)
        with torch.device("meta"):
            return config.build(DIM, TokenGrid((side, side)), NoPosition()).cost(Load(2, head_parts=parts))

    assert cost(8).forward == 4 * cost(4).forward
    assert cost(8, parts=2).forward == cost(8).forward // 2


def test_a_later_word_changes_no_earlier_logit():
    mixer = StructureConfig(attention_heads=1, shift_heads=1, head_dim=4, every_shift=True)
    net = build_model(GPTConfig(vocabulary=11, tokens=6, width=8, depth=1, mlp=8, mixer=mixer)).double()
    initialise(net, 0)
    assert net.positions is None
    ids = torch.arange(6)[None]
    changed = ids.clone()
    changed[0, 3] = 9
    before, after = net(ids), net(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize(
    ("options", "model", "says"),
    [
        ({}, {"pool": "cls"}, "mixer structure shifts tokens on a grid, where the class token has"),
        ({"reach": [1]}, {}, "reach \\[1\\] for a grid of 3×3: one number for each dimension"),
        ({"attention_heads": 0, "shift_heads": 0}, {}, "mixer structure has no head"),
        ({}, {"position": "rope"}, "position rope: mixer structure applies no positions"),
    ],
)
def test_what_it_cannot_do_is_refused(options, model, says: str):
    image = {"image_size": 12, "patch_size": 4, "channels": 1, "classes": 3, "width": 8, "depth": 1, "mlp": 8}
    with pytest.raises(ValueError, match=says):
        ViTConfig(**{**image, "pool": "mean", **model}, mixer={"kind": "structure", **options})
