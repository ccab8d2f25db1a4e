"""A card's joined products give what the separate ones give, in fewer launches."""

import pytest
import torch

from models.mixers import joined
from models.mixers.counted_pass import count_pass
from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.cards import CARDS


def results(mixer: Translution, x: torch.Tensor) -> list[torch.Tensor]:
    y = mixer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize(("relative", "rank"), [("qkv", 3), ("q", 3), ("v", 2), ("v", None)])
def test_joined_products_equal_separate_ones(
    relative: str, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mixer = Translution(12, OffsetGrid((2, 3)), heads=2, head_dim=4, relative=relative, rank=rank).double()
    x = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    separate = results(mixer, x)
    monkeypatch.setattr(joined, "joins", lambda x: True)
    for got, expected in zip(results(mixer, x), separate, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_a_layer_on_a_card_takes_few_launches() -> None:
    """71 with separate projections, a cast of each bank, and float32 results that are rounded afterwards."""
    pytest.importorskip("triton")
    with torch.device("meta"):
        mixer = Translution(768, OffsetGrid((14, 14), class_token=True), 12, rank=8)
    counted = count_pass(mixer, 128, CARDS["h100"])
    assert counted.forward.kernels + counted.backward.kernels <= 31
    assert counted.seconds < 4.8e-3
