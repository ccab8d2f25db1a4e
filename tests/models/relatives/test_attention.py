"""Self-attention with absolute and rotary positions, against the public code of arXiv 2510.10060."""

import pytest

from tests.recordings import cases, errors


@pytest.mark.parametrize("name", cases("self_attention", "rope1d_causal", "rope2d", "vit_former_net"))
def test_outputs_and_gradients_equal_the_recorded_ones(name: str):
    worst = errors(name)
    assert max(worst.values()) < 1e-9, worst
