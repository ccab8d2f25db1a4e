"""A layer's bytes as the planner counts them."""

from typing import Any

import pytest

from models import ViTConfig
from models.mixers.cost import Sizes
from models.mixers.counted_pass import count_pass
from models.ops.cards import CARDS
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner import layers
from parallel.planner.activations import layer_bytes
from parallel.planner.layers import LayerKinds
from parallel.planner.plan import plan


@pytest.mark.parametrize("options", [{}, {"share": "log"}, {"rank": 8}], ids=str)
def test_temporaries_on_a_card_are_those_of_the_kernels_that_are_chosen_there(options: dict[str, Any]):
    """On the CPU, or where no kernel is to be taken, they are the loop's."""
    mixer = {"kind": "translution", "heads": 3, "head_dim": 64, **options}
    shape = {"image_size": 224, "patch_size": 16, "width": 192, "mlp": 384, "depth": 1, "pool": "cls"}
    net = LayerKinds(ViTConfig.model_validate(shape | {"mixer": mixer}))
    (kind,), sizes = net.kinds, Sizes(4, 2, 4, 4)
    counted = count_pass(kind.mixer, 32, CARDS["h100"])
    planned = layer_bytes(net, kind, Mesh(), 32, sizes, cpu=False)
    assert planned.mixer_work == 32 * 197 * 192 * 4 + counted.work_bytes
    assert planned.mixer_work < 1.1 * (1 << 30)
    assert layer_bytes(net, kind, Mesh(), 32, sizes, cpu=True).mixer_work != planned.mixer_work


def test_a_quick_plan_counts_no_kernels(monkeypatch):
    """The recommendation sorts meshes by such plans, and counts those that it chooses from."""
    monkeypatch.setattr(layers, "count_pass", lambda *arguments: pytest.fail("counted"))
    config = {"image_size": 64, "patch_size": 16, "width": 64, "mlp": 64, "depth": 1}
    net = LayerKinds(ViTConfig.model_validate(config | {"mixer": {"kind": "translution", "heads": 1}}))
    planned = plan(net, ParallelConfig(), Mesh(), 4, precision="bf16", counted=False)
    assert planned.memory.peak > 0
