"""Layers of a net whose class token or latents have layers of their own."""

import torch

from models import ViTConfig, build_model
from models.mixers.xcit.class_attention import ClassAttention

BASE = {
    "classes": 5,
    "width": 16,
    "depth": 1,
    "mlp": 16,
    "mixer": {"kind": "xca", "heads": 2},
    "pool": "mean",
}


def test_the_class_token_joins_after_the_body():
    joined = {"pool": "class_attention", "class_attention": {"layers": 3, "heads": 2}}
    net = build_model(ViTConfig.model_validate(BASE | joined | {"image_size": 16, "patch_size": 4}))
    tokens = [layer.mixer.num_tokens for layer in net.layers]
    assert tokens == [16, 17, 17, 17]
    assert all(isinstance(layer.mixer, ClassAttention) for layer in list(net.layers)[1:])


def test_the_last_layer_of_a_net_with_latents_is_one_sided():
    values = {"mixer": {"kind": "bixt", "heads": 2}, "pool": "latents", "latents": 3, "depth": 2}
    net = build_model(ViTConfig.model_validate(BASE | values | {"image_size": 16, "patch_size": 4}))
    cross = [layer.mixer for layer in list(net.layers)[::2]]
    assert [mixer.one_sided for mixer in cross] == [False, True]
    loss = net(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())  # nothing is unused
