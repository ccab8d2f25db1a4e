"""BiXT, against its public code."""

import pytest
import torch

from models.relatives import build
from tests.recordings import Recording, cases, errors


@pytest.mark.parametrize("name", cases("bixt_cross", "bixt_cross_onesided", "bixt_block"))
def test_outputs_and_gradients_equal_the_recorded_ones(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-9, worst


@pytest.mark.parametrize("name", cases("bixt_net"))
def test_nets_equal_the_recorded_ones_in_float32(name: str):
    worst = errors(name)
    assert max(worst.values()) < 3e-5, worst


def test_layer_scales_multiply_every_branch():
    """A block whose six scales are zero gives its inputs back."""
    recording = Recording("bixt_block/a")
    cross, alone = "cross_attention_latents_token.", "self_attention_latents."
    names = [f"{cross}ls{n}_{side}" for n in (1, 2) for side in ("lat", "pat")] + [
        f"{alone}ls1",
        f"{alone}ls2",
    ]
    scales = {f"{name}.gamma": torch.zeros(8, dtype=torch.float64) for name in names}
    block = build("bixt_block", recording.cfg | {"layer_scale": 1.0}, recording.group("param") | scales)
    found = block(**recording.inputs)
    assert torch.equal(found["y_latents"], recording.inputs["latents"])
    assert torch.equal(found["y_tokens"], recording.inputs["tokens"])
