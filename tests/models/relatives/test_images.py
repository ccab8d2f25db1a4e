"""Token Statistics Transformer and XCiT for images, against their public code."""

import pytest
import torch

from models.relatives import build
from tests.recordings import Recording, cases, errors

LAYERS = cases(
    "tssa_vision", "tost_block", "class_attention", "class_attention_block", "xca", "lpi", "xca_block"
)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_gradients_and_statistics_equal_the_recorded_ones(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-9, worst


@pytest.mark.parametrize("name", cases("tost_net", "xcit_net"))
def test_nets_equal_the_recorded_ones_in_float32(name: str):
    worst = errors(name)
    assert max(worst.values()) < 3e-5, worst


@pytest.mark.parametrize("name", cases("fourier_pos"))
def test_the_code_of_a_grid_equals_the_recorded_one(name: str):
    recording = Recording(name)
    code = recording.arrays["code"]
    H, W = code.shape[1:]
    found = build("fourier_pos", recording.cfg, {})(H=H, W=W)["code"]  # pyright: ignore[reportArgumentType]
    assert found.shape == code.shape
    assert (found - code).abs().max() < 2e-6


def test_training_leaves_the_recorded_statistics_and_a_pass_without_gradients_leaves_none():
    recording = Recording("lpi/train")
    buffer = {name: t.clone() for name, t in recording.group("buffer_before").items()}
    lpi = build("lpi", recording.cfg, recording.group("param"), buffer)
    with torch.no_grad():
        lpi(**recording.inputs)
    before = recording.group("buffer_before")
    assert all(torch.equal(buffer[name], before[name]) for name in buffer)
    lpi(**recording.inputs)
    after = recording.group("buffer")
    assert all(torch.allclose(buffer[name], after[name], atol=1e-12) for name in buffer)
