"""Image nets have the paper's sizes and read images, square or not, patch by patch."""

import pytest
import torch
from pydantic import ValidationError

from models import ViTConfig, build_model
from models.mixers.attention import Attention
from models.mixers.translution import Translution
from models.parts.stems import patches as cut

MNIST = {"image_size": 84, "patch_size": 12, "channels": 1, "classes": 10}
VIT_A_56 = {"image_size": 224, "patch_size": 56, "classes": 1000}


@pytest.mark.parametrize(
    ("net", "mixer", "millions"),
    [
        (MNIST, {"kind": "attention"}, 2.7),
        (MNIST, {"kind": "translution"}, 116.2),
        (MNIST, {"kind": "translution", "rank": 8}, 4.6),
        (VIT_A_56, {"kind": "attention"}, 4.7),
        (VIT_A_56, {"kind": "translution"}, 38.5),
        (VIT_A_56, {"kind": "translution", "rank": 8}, 5.3),
    ],
)
def test_parameter_counts_are_the_papers(net, mixer, millions):
    with torch.device("meta"):
        model = build_model(ViTConfig(mixer=mixer, **net))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def tiny(**changes):
    net = {"image_size": 12, "patch_size": 4, "channels": 1, "classes": 5, "width": 8, "depth": 2, "mlp": 16}
    return ViTConfig(**{**net, "mixer": {"kind": "translution", "heads": 2, "head_dim": 4}, **changes})


def test_patches_are_read_row_by_row():
    model = build_model(tiny())
    images = torch.arange(144.0).view(1, 1, 12, 12)
    patches = cut(images, model.config.patch_shape)
    assert patches.shape == (1, 9, 16)
    assert torch.equal(patches[0, 5].view(4, 4), images[0, 0, 4:8, 8:12])


def test_rectangles_are_read_row_by_row_too():
    model = build_model(tiny(image_size=[12, 20], patch_size=[3, 5]))
    assert model.config.grid == (4, 4)
    images = torch.arange(240.0).view(1, 1, 12, 20)
    assert torch.equal(cut(images, model.config.patch_shape)[0, 6].view(3, 5), images[0, 0, 3:6, 10:15])
    assert model(images.expand(2, 1, 12, 20)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"\[batch, 1, 12, 20\] is needed"):
        model(torch.randn(1, 1, 20, 12))


def test_mean_pooled_translution_does_not_change_when_positions_cannot_matter():
    """One matrix for all offsets and mean pooling: shuffling the patches changes nothing; with a
    matrix per offset it does."""
    torch.manual_seed(0)
    images = torch.randn(2, 1, 12, 12)
    shuffled = torch.cat((images[:, :, 4:], images[:, :, :4]), 2)
    for share, blind in (("clip(0)", True), ("none", False)):
        mixer = {"kind": "translution", "heads": 2, "head_dim": 4, "share": share}
        model = build_model(tiny(mixer=mixer, pool="mean")).eval()
        assert torch.allclose(model(images), model(shuffled), atol=1e-5) == blind


def test_only_nets_blind_to_positions_learn_embeddings():
    attention = {"kind": "attention", "heads": 2, "head_dim": 4}
    assert build_model(tiny()).positions is None
    assert build_model(tiny(mixer=attention)).positions.shape == (1, 10, 8)
    assert build_model(tiny(mixer=attention, position="rope")).positions is None
    assert build_model(tiny(position="learned")).positions is not None


def test_a_class_token_joins_before_a_later_stage():
    attention = {"kind": "attention", "heads": 2, "head_dim": 4}
    stages = [{"layers": 2, "position": "gpsa"}, {"layers": 1, "position": "none", "class_token": True}]
    net = build_model(tiny(depth=3, mixer=attention, position="learned", stages=stages))
    seen = []
    for layer in net.layers:
        layer.mixer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    assert net.positions.shape == (1, 9, 8)
    before = net(torch.ones(1, 1, 12, 12))
    assert seen == [9, 9, 10]
    with torch.no_grad():
        net.class_token += torch.arange(8)
    assert not torch.allclose(net(torch.ones(1, 1, 12, 12)), before)


@pytest.mark.parametrize(("pool", "joins"), [("mean", 1), ("cls", 2)])
def test_a_class_token_joins_once_and_only_where_it_is_read(pool: str, joins: int):
    stages = [{"layers": 1, "class_token": True}] * joins
    says = rf"stages\[{joins - 1}\].class_token: joins once, and only with pool: cls"
    with pytest.raises(ValidationError, match=says):
        tiny(depth=joins, pool=pool, stages=stages)


def test_mixed_nets_have_their_mixers_in_order():
    stages = [
        {"mixer": {"kind": "translution", "heads": 2, "head_dim": 4}, "layers": 1},
        {"mixer": {"kind": "attention", "heads": 2, "head_dim": 4}, "layers": 2},
    ]
    model = build_model(tiny(stages=stages, depth=3))
    assert [type(layer.mixer) for layer in model.layers] == [Translution, Attention, Attention]
    with pytest.raises(ValidationError, match=r"layers \[1, 2\] add up to 3, depth is 2"):
        tiny(stages=stages)


def test_a_patch_size_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValidationError, match="image_size 12 is not a multiple of patch_size 5"):
        tiny(patch_size=5)


def test_images_of_the_wrong_size_are_refused():
    with pytest.raises(ValueError, match=r"\[batch, 1, 12, 12\] is needed"):
        build_model(tiny())(torch.randn(2, 1, 12, 16))
