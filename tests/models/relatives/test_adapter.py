"""`build` uses the given tensors, and says in a line what is wrong with them."""

import pytest
import torch

from models.relatives import build
from tests.recordings import Recording

SWIN = Recording("swin_bias/a")


def test_the_given_tensors_are_used_at_each_call():
    param = {name: t.clone() for name, t in SWIN.group("param").items()}
    layer = build("swin_bias", SWIN.cfg, param)
    first = layer(**SWIN.inputs)["y"]
    param["proj.bias"] += 1
    torch.testing.assert_close(layer(**SWIN.inputs)["y"], first + 1)
    assert dict(layer.named_parameters()).keys() == param.keys()


def test_one_layer_serves_inputs_of_several_lengths():
    recording = Recording("shaw/causal")
    layer = build("shaw", recording.cfg, recording.group("param"))
    x = recording.inputs["x"]
    whole, part = layer(x=x)["y"], layer(x=x[:, :4])["y"]
    torch.testing.assert_close(part, whole[:, :4])


def test_one_head_as_wide_as_the_net_has_no_output_projection():
    torch.manual_seed(0)
    param = {"norm.weight": torch.ones(4), "norm.bias": torch.zeros(4), "to_qkv.weight": torch.randn(12, 4)}
    x = torch.randn(2, 5, 4)
    y = build("self_attention", {"num_heads": 1, "dim_head": 4}, param)(x=x)["y"]
    q, k, v = (torch.nn.functional.layer_norm(x, (4,)) @ param["to_qkv.weight"].T).chunk(3, -1)
    torch.testing.assert_close(y, (q @ k.transpose(1, 2) / 2).softmax(-1) @ v)


@pytest.mark.parametrize(
    ("system", "changes", "says"),
    [
        ("swin", {}, "system swin: one of .*swin_bias"),
        ("swin_bias", {"cfg": {"num_heads": 3, "qkv_bias": True}}, "system swin_bias: cfg has no window"),
        ("swin_bias", {"without": "proj.weight"}, "system swin_bias: param has no proj.weight"),
        ("swin_bias", {"extra": "norm.weight"}, "system swin_bias: has no parameter norm.weight"),
        (
            "swin_bias",
            {"cfg": SWIN.cfg | {"window": [9, 1]}},
            r"attend.bias is \(3, 25\) in param; .* \(3, 17\)",
        ),
        ("swin_bias", {"inputs": {"image": torch.zeros(1)}}, "system swin_bias: input has no x"),
    ],
)
def test_what_does_not_fit_is_named(system, changes, says: str):
    param = SWIN.group("param")
    param.pop(changes.get("without", ""), None)
    if "extra" in changes:
        param[changes["extra"]] = torch.zeros(1)
    with pytest.raises(ValueError, match=says):
        build(system, changes.get("cfg", SWIN.cfg), param)(**changes.get("inputs", SWIN.inputs))
