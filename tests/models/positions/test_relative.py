"""Positions inside attention, against the public code's recordings and their equations pair by pair."""

import math

import pytest
import torch
from torch import Tensor

from models import GPTConfig, OffsetGrid, TokenGrid, ViTConfig, build_model
from models.initial import initialise
from models.mixers.attention import Attention, AttentionConfig
from models.mixers.cost import Load
from models.mixers.measured_cost import measured_cost
from models.positions.interface import PositionConfig
from models.positions.relative.botnet import BotnetPosition
from models.positions.relative.gpsa import GatedPosition
from models.positions.relative.shaw import ShawPosition
from models.positions.relative.skew import clip, to_keys, to_relative, unclip
from models.positions.relative.swin import BiasAttend, SwinPosition
from models.positions.sinusoidal import SinusoidalPosition
from tests.recordings import Recording, cases, errors

DIM, HEADS, E = 10, 3, 4


@pytest.mark.parametrize("name", cases("shaw", "botnet", "swin_bias", "gpsa", "gpsa_at_init"))
def test_outputs_and_gradients_equal_the_recorded_ones(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-9, worst


def build(position: PositionConfig, tokens: TokenGrid) -> Attention:
    torch.manual_seed(0)
    layer = Attention(DIM, tokens, HEADS, E, position, bias=True).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def places(tokens: TokenGrid) -> Tensor:
    assert tokens.shape is not None
    return torch.cartesian_prod(*(torch.arange(n) for n in tokens.shape)).view(tokens.num_tokens, -1)


def naive(layer: Attention, x: Tensor, tokens: TokenGrid, position: PositionConfig) -> Tensor:
    """The layer with a vector or number for every pair of tokens, [N, N, …]."""
    q, k, v = (m(x).unflatten(-1, (HEADS, E)).transpose(1, 2) for m in (layer.q, layer.k, layer.v))
    p, own = places(tokens), dict(layer.attend.named_parameters())
    delta = p[None] - p[:, None]  # key − query
    logits = q @ k.transpose(-1, -2) / math.sqrt(E)
    values = torch.zeros(len(p), len(p), E, dtype=x.dtype)
    if isinstance(position, ShawPosition):
        index = delta[..., 0].clamp(-position.max_distance, position.max_distance) + position.max_distance
        vectors = own["relative_keys"][index]
        values = own["relative_values"][index]
        logits = logits + torch.einsum("bhie,ije->bhij", q, vectors) / math.sqrt(E)
    if isinstance(position, BotnetPosition):
        rows, columns = tokens.shape
        vectors = own["height_rel"][delta[..., 0] + rows - 1] + own["width_rel"][delta[..., 1] + columns - 1]
        added = torch.einsum("bhie,ije->bhij", q, vectors)
        logits = logits + (added / math.sqrt(E) if position.scale else added)
    if isinstance(position, SwinPosition):
        entries = torch.zeros(len(p), len(p), dtype=torch.long)  # by rows of δ = query − key
        for d, n in enumerate(tokens.shape):
            entries = entries * (n if tokens.causal else 2 * n - 1)
            entries = entries - delta[..., d] + (0 if tokens.causal else n - 1)
        logits = logits + own["bias"][:, entries]
    if tokens.causal:
        logits = logits.masked_fill(delta[..., 0] > 0, float("-inf"))
    weights = logits.softmax(-1)
    if isinstance(position, GatedPosition):
        y, x_ = delta[..., 0].double(), delta[..., 1].double()
        r = torch.stack((x_, y, x_**2 + y**2), -1)
        gate = own["gating"].sigmoid()[:, None, None]
        by_place = (r @ own["pos_weight"].T + own["pos_bias"]).permute(2, 0, 1).softmax(-1)
        weights = (1 - gate) * weights + gate * by_place
        weights = weights / weights.sum(-1, keepdim=True)
    out = weights @ v + torch.einsum("bhij,ije->bhie", weights, values)
    return layer.out(out.transpose(1, 2).flatten(2))


CASES = {
    "shaw": (ShawPosition(max_distance=2), TokenGrid((5,))),
    "shaw, clipped nowhere": (ShawPosition(max_distance=7), TokenGrid((5,), causal=True)),
    "shaw, to the end": (ShawPosition(max_distance=4), TokenGrid((5,))),
    "shaw, one token": (ShawPosition(max_distance=1), TokenGrid((1,), causal=True)),
    "botnet": (BotnetPosition(), TokenGrid((3, 5))),
    "botnet, unscaled": (BotnetPosition(scale=False), TokenGrid((4, 1))),
    "swin": (SwinPosition(), TokenGrid((3, 5))),
    "swin, causal": (SwinPosition(), TokenGrid((7,), causal=True)),
    "swin, 3-D": (SwinPosition(), TokenGrid((2, 3, 2))),
    "gpsa": (GatedPosition(), TokenGrid((3, 5))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_equals_its_equations(name: str):
    position, tokens = CASES[name]
    layer = build(position, tokens)
    x = torch.randn(2, tokens.num_tokens, DIM, dtype=torch.float64, requires_grad=True)
    wanted, dy = naive(layer, x, tokens, position), torch.randn_like(x)
    inputs = [x, *layer.parameters()]
    theirs = torch.autograd.grad(wanted, inputs, dy)
    found = layer(x)
    ours = torch.autograd.grad(found, inputs, dy)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("N", "K"), [(1, 1), (2, 1), (5, 2), (5, 4), (4, 6), (6, 1), (5, 0)])
def test_moves_to_relative_places_are_transposes_of_those_back(N: int, K: int):
    x, y = torch.randn(3, N, 2 * K + 1), torch.randn(3, N, N)
    torch.testing.assert_close((to_keys(unclip(x, N)) * y).sum(), (x * clip(to_relative(y), K)).sum())


@pytest.mark.parametrize(
    "grid", [OffsetGrid((3, 4), class_token=True), OffsetGrid((2, 1, 3)), OffsetGrid((1,))]
)
def test_the_bias_of_a_pair_is_that_of_its_offset(grid: OffsetGrid):
    attend = BiasAttend(grid, HEADS)
    torch.nn.init.normal_(attend.bias)
    assert torch.equal(attend.of_pairs(), attend.bias[:, grid.table])


def test_a_class_token_has_biases_of_its_own_that_begin_at_zero():
    net = build_model(ViTConfig(**IMAGE, position="swin", mixer=AttentionConfig(heads=2, head_dim=4)))
    initialise(net, 0)
    bias = net.get_parameter("layers.0.mixer.attend.bias")
    assert bias.shape == (2, 5 * 5 + 3)
    assert not bias[:, -3:].any()
    assert 0.01 < bias[:, :-3].std() < 0.03


@pytest.mark.parametrize("name", cases("gpsa_at_init"))
def test_a_new_gated_layer_is_a_convolution(name: str):
    recording = Recording(name)
    init, heads = recording.group("init"), recording.cfg["num_heads"]
    dim, tokens = len(init["v.weight"]), TokenGrid(tuple(recording.cfg["grid"]))
    mixer = Attention(dim, tokens, heads, dim // heads, GatedPosition(), bias=True)
    initialise(mixer, 0)
    ours = {"gating": "gating_param", "pos_weight": "pos_proj.weight", "pos_bias": "pos_proj.bias"}
    for name, theirs in ours.items():
        assert torch.equal(mixer.get_parameter(f"attend.{name}"), init[theirs])
    assert torch.equal(mixer.v.weight, init["v.weight"])
    assert not mixer.v.bias.any()


def test_locality_narrows_all_heads_and_heads_beyond_a_square_stay_random():
    weights = []
    for locality in (1.0, 3.0):
        mixer = Attention(20, TokenGrid((3, 3)), 5, 4, GatedPosition(locality=locality))
        initialise(mixer, 0)
        weights.append(mixer.get_parameter("attend.pos_weight"))
    torch.testing.assert_close(weights[1], 3 * weights[0])
    assert weights[0][:4].abs().max() == 1
    assert 0 < weights[0][4].abs().max() < 0.1


IMAGE = {"image_size": 12, "patch_size": 4, "channels": 1, "classes": 3, "width": 8, "depth": 1, "mlp": 8}
TEXT = {"vocabulary": 11, "tokens": 6, "width": 8, "depth": 1, "mlp": 8}
SMALL = AttentionConfig(heads=2, head_dim=4)


@pytest.mark.parametrize("position", ["sinusoidal", "swin", {"kind": "shaw", "max_distance": 2}, "rope"])
def test_a_later_word_changes_no_earlier_logit(position):
    net = build_model(GPTConfig(**TEXT, mixer=SMALL, position=position)).double()
    initialise(net, 0)
    ids = torch.arange(6)[None]
    changed = ids.clone()
    changed[0, 3] = 9
    before, after = net(ids), net(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: ViTConfig(**IMAGE, mixer=SMALL, position="shaw"), "shaw: it knows distances in a sequence"),
        (lambda: GPTConfig(**TEXT, mixer=SMALL, position="botnet"), "botnet: it knows rows and columns"),
        (lambda: ViTConfig(**IMAGE, mixer=SMALL, position="botnet"), "a class token has no rows and columns"),
        (
            lambda: GPTConfig(**TEXT, mixer=SMALL, position="gpsa"),
            "gpsa: it knows places of an image",
        ),
        (lambda: ViTConfig(**IMAGE, mixer=SMALL, position="gpsa"), "a class token has no places"),
        (lambda: ViTConfig(**IMAGE, position="swin"), "swin: it acts on logits; translution's"),
        (
            lambda: ViTConfig(**{**IMAGE, "width": 10}, mixer=SMALL, position="sinusoidal"),
            "width 10 is no mul",
        ),
    ],
)
def test_a_position_that_cannot_be_is_refused_with_the_reason(model, says: str):
    with pytest.raises(ValueError, match=says):
        model()


def test_sinusoids_split_their_channels_between_rows_and_columns():
    tokens = TokenGrid((2, 3), class_token=True)
    found = SinusoidalPosition().embedding(tokens, 8)(torch.zeros(1, 7, 8, dtype=torch.float64))[0]
    assert not found[0].any()
    row, column = 1, 2
    wanted = [
        f(p / 10_000 ** (2 * i / 4)) for p in (row, column) for i in range(2) for f in (math.sin, math.cos)
    ]
    torch.testing.assert_close(found[1 + row * 3 + column], torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
def test_costs_are_known_for_every_position(name: str):
    position, tokens = CASES[name]
    with torch.device("meta"):
        mixer = AttentionConfig(heads=4, head_dim=4).build(16, tokens, position)
    whole, half = (measured_cost(mixer, Load(2, head_parts=parts)) for parts in (1, 2))
    assert mixer.cost(Load(2)) == whole
    assert half.forward < whole.forward
    shared = sum(p.numel() for name, p in mixer.attend.named_parameters() if name not in mixer.attend.axes())
    assert whole.head_gradients == 4 * (2 * tokens.num_tokens * 16 + shared)
