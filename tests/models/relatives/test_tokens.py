"""Token reduction, against the public code of EViT, DynamicViT and TCFormer, and our own definition."""

import pytest
import torch

from models.relatives import build
from tests.recordings import Recording, cases, errors

EXACT = cases(
    "evit_block",
    "evit_net",
    "dynamicvit_predictor",
    "dynamicvit_net",
    "dpc_knn",
    "decouple_merge_reconstruction",
)


@pytest.mark.parametrize("name", EXACT)
def test_outputs_and_gradients_equal_the_recorded_ones(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-9, worst


@pytest.mark.parametrize("name", cases("dynamicvit_masked_attention"))
def test_masked_attention_equals_the_recorded_one_in_float32(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.parametrize("name", cases("dpc_knn"))
def test_clusters_are_the_recorded_ones(name: str):
    recording = Recording(name)
    inputs = {key: recording.arrays[key] for key in ("x", "weight")}
    found = build("dpc_knn", recording.cfg, {})(**inputs)
    assert torch.equal(found["cluster"], recording.arrays["cluster"])


@pytest.mark.parametrize("name", cases("evit_schedule"))
def test_the_keep_rate_falls_as_recorded(name: str):
    recording = Recording(name)
    found = build("evit_schedule", recording.cfg, {})(epoch=recording.arrays["epoch"])["keep_rate"]
    assert torch.equal(found, recording.arrays["keep_rate"])
