"""The public code's weights give the public code's values and gradients, and are written back unchanged.

Two sources say what those are: outputs recorded from that code (fixtures/SOURCE.md), and for every
layer and net it has, the mathematics in public_code.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import OffsetGrid, Translution, build_model
from models.reference.convert import load_reference_layer, load_reference_network, to_reference_state
from models.reference.table import PreNorm
from models.transformer import GPTConfig, ViTConfig
from tests.models.reference.public_code import (
    COLUMNS,
    LENGTH,
    NAMES,
    NETS,
    ROWS,
    C,
    D,
    H,
    grid_of,
    layer_shapes,
    network_input,
    network_state,
    public_layer,
    public_network,
    random_state,
)

recorded = np.load(Path(__file__).parents[2] / "fixtures" / "translution_reference.npz")
RECORDED = sorted({key.split("/param/")[0] for key in recorded.files if "/param/" in key})


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)


def layer_gradients(layer, x, dy):
    """y, dx and the parameters' gradients, these under the public keys."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return y.detach(), x.grad, to_reference_state(layer, grads)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_layers_are_matched(name):
    arrays = {key.removeprefix(f"{name}/"): torch.from_numpy(recorded[key]) for key in recorded.files}
    state = {key.removeprefix("param/"): t for key, t in arrays.items() if key.startswith("param/")}
    layer = load_reference_layer(name, state, grid_of(name))
    y, dx, grads = layer_gradients(layer, arrays["x"], arrays["dy"])
    torch.testing.assert_close(y, arrays["y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(dx, arrays["dx"], rtol=0, atol=1e-5)
    for key in state:
        torch.testing.assert_close(grads[key], arrays[f"grad/{key}"], rtol=0, atol=1e-5)
    assert_same_state(to_reference_state(layer), state)


@pytest.mark.parametrize("heads", [H, 1], ids=["two-heads", "no-projection"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_equals_its_equations(name, heads):
    torch.manual_seed(0)
    state = random_state(layer_shapes(name, heads=heads, head_dim=D // heads))
    x = torch.randn(2, 13 if name.startswith("vit") else LENGTH, C, dtype=torch.double)
    dy = torch.randn_like(x)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in state.items()}
    x_leaf = x.clone().requires_grad_()
    expected = public_layer(name, leaves, x_leaf, heads)
    expected.backward(dy)
    layer = load_reference_layer(name, state, grid_of(name))
    y, dx, grads = layer_gradients(layer, x, dy)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(y, expected.detach(), **close)
    torch.testing.assert_close(dx, x_leaf.grad, **close)
    assert grads.keys() == state.keys()
    for key in state:
        torch.testing.assert_close(grads[key], leaves[key].grad, **close)
    assert_same_state(to_reference_state(layer), state)


def test_two_shared_projections_may_lie_in_one_matrix_or_in_two():
    state = random_state(layer_shapes("vit/k"))
    split = {key: tensor for key, tensor in state.items() if key != "to_qv.weight"}
    split |= dict(zip(("to_q.weight", "to_v.weight"), state["to_qv.weight"].chunk(2), strict=True))
    layers = [load_reference_layer("vit/k", each, (ROWS, COLUMNS)) for each in (state, split)]
    x = torch.randn(2, 13, C, dtype=torch.double)
    assert torch.equal(layers[0](x), layers[1](x))
    assert_same_state(to_reference_state(layers[1]), split)


def test_heads_can_be_named_and_training_leaves_the_callers_weights_alone():
    state = random_state(layer_shapes("gpt/kv"))
    before = {key: tensor.clone() for key, tensor in state.items()}
    layer = load_reference_layer("gpt/kv", state, (LENGTH,), heads=4)
    x = torch.randn(2, LENGTH, C, dtype=torch.double)
    torch.testing.assert_close(layer(x), public_layer("gpt/kv", state, x, heads=4), rtol=0, atol=1e-12)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert_same_state(state, before)


@pytest.mark.parametrize("net", NETS)
def test_every_net_equals_its_equations_and_is_written_back_unchanged(net):
    state, inputs = network_state(net), network_input(net)
    model = load_reference_network(state).eval()
    torch.testing.assert_close(model(inputs), public_network(net, state, inputs), rtol=0, atol=1e-10)
    assert_same_state(to_reference_state(model), state)
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    assert_same_state(to_reference_state(load_reference_network(wrapped)), wrapped)


@pytest.mark.parametrize(
    "net", sorted(set(NETS) - {"vit-hybrid-rope_v"})
)  # whose first layer has a table for nothing
def test_our_own_nets_are_written_as_the_public_code_saves_them(net):
    """Keys, shapes, masks and tables; what is read back computes the same."""
    state, inputs = network_state(net), network_input(net)
    torch.manual_seed(2)
    model = build_model(load_reference_network(state).config).double().eval()
    written = to_reference_state(model)
    assert {key: t.shape for key, t in written.items()} == {key: t.shape for key, t in state.items()}
    for key in written:
        if key.endswith(("causal", "_cached")):
            torch.testing.assert_close(written[key], state[key], rtol=0, atol=1e-6)
    # The second of a language net's two norms adds its eps once more.
    close = {"rtol": 0, "atol": 1e-4 if net.startswith("gpt") else 1e-12}
    torch.testing.assert_close(load_reference_network(written)(inputs), model(inputs), **close)


@pytest.mark.parametrize(
    ("name", "grid", "says"),
    [
        ("vit/kv", (4, 4), r"to_k.unique_params has 38 .* grid \(4, 4\) .*needs 52; .* \(3, 4\), \(4, 3\)"),
        ("vit/lor_q", (12,), r"grid \(12,\): \(rows, columns\) is needed"),
        ("gpt/lor_v", (8,), r"to_v2.unique_params has 7 entries, grid \(8,\) needs 8; .* grid \(7,\)"),
        ("gpt/k", (2, 3), r"\(tokens,\) is needed"),
        ("vit/vk", (3, 4), r"'vit/vk': .* q k v .*lor_rope_v"),
        ("gpt/rope_v", (7,), "'gpt/rope_v'"),
        ("vit/rope_k", (3, 4), "'vit/rope_k'"),
        ("bert/q", (7,), "'bert/q'"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(name, grid, says):
    known = name if name in NAMES else "gpt/v" if name.startswith("gpt") else "vit/v"
    with pytest.raises(ValueError, match=says):
        load_reference_layer(name, random_state(layer_shapes(known)), grid)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("norm.weight"), "no norm.weight"),
        (lambda s: s.pop("norm.bias"), r"missing \['norm.bias'\]"),
        (lambda s: s.pop("to_v.unique_params"), "vit/kv: these are the keys of vit/k"),
        (lambda s: s.update(more=torch.zeros(1)), r"unknown \['more'\]"),
        (
            lambda s: s.update({"to_q.weight": torch.zeros(8, C)}),
            r"to_q.weight is \(8, 16\), \(16, 16\) fits",
        ),
        (lambda s: s.clear(), "no norm.weight"),
    ],
)
def test_weights_that_are_incomplete_or_of_something_else_are_refused(change, says):
    state = random_state(layer_shapes("vit/kv"))
    change(state)
    with pytest.raises(ValueError, match=says):
        load_reference_layer("vit/kv", state, (ROWS, COLUMNS))


@pytest.mark.parametrize(
    "options", [{"heads": 3}, {"head_dim": 5}, {"heads": 2, "head_dim": 4}, {"heads": 0}]
)
def test_heads_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match=r"inner width 16.*low-rank width 8.*name heads and head_dim"):
        load_reference_layer("vit/lor_kv", random_state(layer_shapes("vit/lor_kv")), (3, 4), **options)


def test_objects_that_are_not_our_nets_are_refused():
    for state in ({}, {"weight": torch.zeros(2, 2)}):
        with pytest.raises(ValueError, match="no state dict of the reference code"):
            load_reference_network(state)
    state = network_state("vit-lor_kv")
    for entries, says in ((52, "layer 0, vit/lor_kv: to_k2"), (38, r"grids .*\(3, 4\).*: name one as grid=")):
        for layer in range(2):
            state[f"translution.layers.{layer}.0.to_v2.unique_params"] = torch.zeros(entries, 8, 8)
        with pytest.raises(ValueError, match=says):
            load_reference_network(state)


TINY = {"width": 8, "depth": 2, "mlp": 16}
MIXER = {"kind": "translution", "heads": 2, "head_dim": 4}
ATTENTION = {**MIXER, "kind": "attention"}
REVERSED = [{"mixer": ATTENTION, "layers": 1}, {"mixer": MIXER, "layers": 1}]


def test_a_net_of_a_rectangle_is_read_when_its_grid_is_given():
    """The banks of 3 × 4 patches fit 4 × 3, 1 × 18 and 18 × 1 as well."""
    torch.manual_seed(0)
    ours = build_model(image_net(image_size=[6, 8], mixer=MIXER))
    state = to_reference_state(ours)
    with pytest.raises(ValueError, match=r"fit grids \(1, 18\), \(3, 4\).*name one as grid="):
        load_reference_network(state, heads=2)
    with pytest.raises(ValueError, match=r"grid=\(2, 6\): the reference weights fit"):
        load_reference_network(state, grid=(2, 6), heads=2)
    read = load_reference_network(state, grid=(3, 4), heads=2)
    images = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(read(images), ours(images))


def image_net(**options):
    return ViTConfig.model_validate({**TINY, "image_size": 6, "patch_size": 2, **options})


LATE = [{"layers": 1}, {"layers": 1, "class_token": True}]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (image_net(mixer=MIXER, pool="mean"), "pool mean"),
        (image_net(mixer={**MIXER, "share": "log"}), "share log"),
        (image_net(mixer={**MIXER, "relative": "v"}, position="rope"), "rope"),
        (image_net(mixer={**MIXER, "heads": 1, "head_dim": 8}), "output projection"),
        (image_net(stages=REVERSED), "this order of layers"),
        (image_net(mixer=ATTENTION, position="swin"), "position kind='swin'"),
        (image_net(mixer=ATTENTION, stages=LATE), "a class token that joins"),
        (image_net(mixer={**ATTENTION, "bias": True}), "biases of queries"),
        (
            image_net(mixer={**MIXER, "relative": "v", "rank": 2}, position={"kind": "rope", "base": 100}),
            "position",
        ),
        (image_net(mixer={"kind": "tests.toy_mixer:MeanConfig"}), "mixer tests.toy_mixer:MeanConfig"),
        (
            image_net(
                mixer=ATTENTION,
                stages=[{"layers": 2, "reduce": {"kind": "tests.toy_mixer:EverySecondConfig"}}],
            ),
            "reduce tests.toy_mixer:EverySecondConfig",
        ),
    ],
)
def test_nets_without_a_counterpart_are_not_written(config, says):
    with pytest.raises(ValueError, match=f"no counterpart of .*{says}"):
        to_reference_state(build_model(config))


def test_layers_without_a_counterpart_are_not_written():
    with pytest.raises(ValueError, match=r"no counterpart of OffsetGrid\(\(2, 2, 2\)"):
        to_reference_state(PreNorm(8, Translution(8, OffsetGrid((2, 2, 2)), 2, 4)))
    with pytest.raises(ValueError, match="Linear"):
        to_reference_state(torch.nn.Linear(2, 2))


def test_tied_embeddings_are_written_twice():
    tied = {**TINY, "mixer": MIXER, "tokens": 5, "vocabulary": 11, "tie_embeddings": True}
    model = build_model(GPTConfig.model_validate(tied))
    written = to_reference_state(model)
    assert torch.equal(written["wte.weight"], written["output_head.weight"])
