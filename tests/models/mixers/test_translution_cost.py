"""The planned bytes of a layer are those that it allocates, whatever walk visits its pairs."""

import pytest
import torch

from launch.bench.peak_memory import peak_memory
from models import OffsetGrid, Translution
from models.mixers.cost import Load, Sizes
from models.mixers.counted_pass import count_pass
from models.mixers.translution_cost import translution_cost
from models.ops.cards import CARDS

CASES = {
    "pairs": (OffsetGrid((10, 10)), {}),
    "bands 2-D": (OffsetGrid((14, 14), share="log"), {}),
    "bands causal": (OffsetGrid((256,), causal=True, share="log"), {}),
    "bands keep": (OffsetGrid((128,), causal=True, share="log"), {"memory": "keep"}),
    "bands qk": (OffsetGrid((10, 10), class_token=True, share="clip(1)"), {"relative": "qk"}),
    "bands alpha": (OffsetGrid((12, 12), share="log"), {"rank": 8}),
    "alpha": (OffsetGrid((10, 10), class_token=True), {"rank": 8}),
    "alpha causal": (OffsetGrid((128,), causal=True), {"rank": 8}),
    "alpha in slices": (OffsetGrid((12, 12)), {"rank": 8, "workspace": 4 << 20}),
    "alpha keep": (OffsetGrid((10, 10)), {"rank": 8, "memory": "keep"}),
    "v": (OffsetGrid((10, 10)), {"relative": "v"}),
    "qk": (OffsetGrid((10, 10)), {"relative": "qk"}),
}


@pytest.mark.parametrize("name", CASES)
def test_planned_bytes_are_near_the_allocated_ones(name):
    grid, options = CASES[name]
    layer = Translution(96, grid, 3, 32, **options)
    x = torch.randn(8, grid.num_tokens, 96, requires_grad=True)

    def step():
        layer(x).sum().backward()

    def clear():
        layer.zero_grad()
        x.grad = None

    step()  # builds tables
    clear()
    peak = peak_memory(step, torch.device("cpu")) - sum(p.nbytes for p in layer.parameters())
    cost = layer.cost(Load(8, cpu=True))
    assert 0.7 < (cost.saved + cost.work) / peak < 1.3


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, "none"),
        ({"relative": "v"}, "none"),
        ({"rank": 8}, "none"),
        ({"rank": 8, "relative": "v"}, "none"),
        ({"rank": 8, "memory": "keep"}, "none"),
        ({}, "log"),
        ({"memory": "keep"}, "log"),
        ({"rank": 8}, "log"),
    ],
    ids=str,
)
def test_what_is_saved_on_a_card_is_what_its_kernels_leave(options, share):
    """Counted on the meta device, activations in bfloat16."""
    with torch.device("meta"):
        mixer = Translution(192, OffsetGrid((14, 14), class_token=True, share=share), 3, 64, **options)
    counted = count_pass(mixer, 32, CARDS["h100"])
    assert counted.kernels == ("fused",)
    cost = translution_cost(mixer, Load(32, Sizes(2, 2, 2, 4)))
    assert cost.saved == pytest.approx(counted.saved_bytes, rel=0.01)
