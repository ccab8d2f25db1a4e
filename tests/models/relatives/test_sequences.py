"""The language form of token statistics, Combiner and RWKV-4, against their public code."""

import pytest
import torch

from models.relatives import build
from tests.recordings import Recording, cases, errors

SYSTEMS = (
    *("tssa_causal", "tost_causal_block", "tost_gpt"),
    *("combiner_fixed", "combiner_axial", "combiner_mixture"),
    *("wkv", "rwkv_time_mix", "rwkv_channel_mix", "rwkv_gpt"),
)


@pytest.mark.parametrize("name", cases(*SYSTEMS))
def test_outputs_and_gradients_equal_the_recorded_ones(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-9, worst


def test_nothing_longer_than_the_position_biases_is_defined():
    recording = Recording("tssa_causal/a")  # of block size 8
    longer = torch.zeros(1, 9, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="position_bias"):
        build("tssa_causal", recording.cfg, recording.group("param"))(x=longer)


def test_the_pull_on_the_largest_logits_has_the_recorded_gradients():
    recording = Recording("rwkv_gpt/a")
    param = {name: t.clone().requires_grad_() for name, t in recording.group("param").items()}
    ids = {name: recording.arrays[name] for name in ("idx", "targets")}
    loss = build("rwkv_gpt", recording.cfg | {"l2wrap": 1e-4}, param)(**ids)["loss"]
    assert torch.allclose(loss, recording.arrays["loss_with_l2wrap"], atol=1e-12)
    loss.backward()
    for name, wanted in recording.group("grad_l2wrap").items():
        assert torch.allclose(param[name].grad, wanted, rtol=1e-9, atol=1e-12), name  # pyright: ignore


def test_a_first_block_may_mix_channels_in_place_of_time():
    recording = Recording("rwkv_gpt/a")
    param = recording.group("param")
    first = {name: t for name, t in param.items() if not name.startswith("blocks.0.att.")}
    first |= {
        name.replace("ffn.", "ffnPre."): t for name, t in param.items() if name.startswith("blocks.0.ffn.")
    }
    ids = {"idx": recording.inputs["idx"]}
    found = build("rwkv_gpt", recording.cfg | {"ffn_pre": True}, first)(**ids)["logits"]
    usual = build("rwkv_gpt", recording.cfg, param)(**ids)["logits"]
    assert found.shape == usual.shape
    assert not torch.allclose(found, usual)
