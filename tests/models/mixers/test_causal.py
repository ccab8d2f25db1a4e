"""Language nets see no later token; mixers refuse tokens that they cannot mix, when the config is read."""

import pytest
import torch
from pydantic import ValidationError

from models import GPT, GPTConfig, ViTConfig, build_model
from models.initial import initialise
from trainer.verify.nets import NETS, net_named

TEXTS = [name for name, net in NETS.items() if net["kind"] == "gpt"]


@pytest.mark.parametrize("name", TEXTS)
def test_a_later_token_changes_no_earlier_logit(name: str):
    net = build_model(net_named(name)).double()
    assert isinstance(net, GPT)
    initialise(net, seed=0)
    torch.manual_seed(0)
    for parameter in net.parameters():  # initial values of zero would hide a leak
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids = torch.randint(net.config.vocabulary, (2, net.config.tokens))
    for place in (5, 12):
        others = ids.clone()
        others[:, place:] = (others[:, place:] + 1) % net.config.vocabulary
        before, after = net(ids), net(others)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.allclose(before[:, place:], after[:, place:], atol=1e-6)


IMAGE = {"image_size": 16, "patch_size": 4, "classes": 5, "width": 8, "depth": 1, "mlp": 16}
TEXT = {"vocabulary": 9, "tokens": 12, "width": 8, "depth": 1, "mlp": 16}
TSSA, XCA, BIXT = {"kind": "tssa", "heads": 2}, {"kind": "xca", "heads": 2}, {"kind": "bixt", "heads": 2}
COMBINER = {"kind": "combiner", "heads": 2, "segment": 4}


@pytest.mark.parametrize(
    ("net", "values", "says"),
    [
        (GPTConfig, {"mixer": XCA}, "mixer xca has no causal form, which a language net needs"),
        (GPTConfig, {"mixer": BIXT}, "mixer bixt has no causal form"),
        (
            ViTConfig,
            {"mixer": BIXT, "pool": "mean"},
            "mixer bixt attends between tokens and latents: it needs",
        ),
        (ViTConfig, {"mixer": TSSA, "pool": "latents", "latents": 3}, "mixer tssa mixes no latents"),
        (ViTConfig, {"mixer": BIXT, "pool": "mean", "latents": 3}, "pool=mean and latents=3"),
        (ViTConfig, {"mixer": COMBINER}, "where a class token has no place: write pool: mean"),
        (GPTConfig, {"mixer": COMBINER | {"segment": 5}}, "segment=5 does not divide 12"),
        (
            ViTConfig,
            {"mixer": COMBINER | {"form": "axial"}, "pool": "mean"},
            "only a causal form with form=axial",
        ),
        (ViTConfig, {"mixer": {"kind": "rwkv"}}, "it has a causal form only, for language nets"),
        (ViTConfig, {"mixer": TSSA, "feed_forward": "rwkv"}, "feed_forward=rwkv reads a sequence"),
        (
            ViTConfig,
            {"mixer": TSSA, "local_patches": True},
            "local_patches: needs a grid of rows and columns",
        ),
        (
            GPTConfig,
            {"mixer": TSSA, "local_patches": True},
            "local_patches: needs a grid of rows and columns",
        ),
        (
            ViTConfig,
            {"mixer": TSSA, "position": "fourier"},
            "position fourier: it has no code for a class token",
        ),
        (GPTConfig, {"mixer": TSSA, "position": "fourier"}, "position fourier: it codes rows and columns"),
        (ViTConfig, {"mixer": TSSA, "initial": "rwkv"}, "initial=rwkv begins an embedding of words"),
        (ViTConfig, {"mixer": TSSA, "class_attention": {}}, "class_attention is of pool: class_attention"),
        (
            ViTConfig,
            {"mixer": TSSA, "stem": "convolutions", "patch_size": 6},
            "patch_size 6: a stem of convolutions",
        ),
        (
            ViTConfig,
            {"mixer": TSSA, "stem": {"stride": 2}},
            "stem.stride=2: only a projection's patches overlap",
        ),
    ],
)
def test_what_a_net_cannot_do_is_refused_with_the_reason(net, values: dict, says: str):
    with pytest.raises(ValidationError) as refused:
        net.model_validate((IMAGE if net is ViTConfig else TEXT) | values)
    (problem,) = refused.value.errors()
    assert says in problem["msg"]
    assert "\n" not in problem["msg"]


def test_widths_that_heads_do_not_divide_are_refused():
    for mixer in (TSSA, XCA, COMBINER):
        with pytest.raises(ValueError, match="width 9 is not divisible by 2 heads"):
            build_model(ViTConfig.model_validate(IMAGE | {"width": 9, "mixer": mixer, "pool": "mean"}))
