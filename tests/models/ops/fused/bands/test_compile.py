"""The kernels of bands compile for every card that the project names, with Triton's own assembler and no
card: nothing is spilled, and registers and shared memory are within the card's limits."""

import pytest
import torch

from models.offsets import OffsetGrid
from tests.models.ops.fused.bands.launches import both_passes, recorded, shared_layer
from tests.models.ops.fused.test_compile import CARDS, POINTERS, compiler, resources  # noqa: F401 (a fixture)

pytest.importorskip("triton")

TEXT = OffsetGrid((1024,), causal=True, share="log")
IMAGE = OffsetGrid((14, 14), class_token=True, share="log")
KERNELS = {"project_rows", "attend", "query_gradients", "key_gradients"}
LAYERS = {
    "text": (TEXT, 8, 768, 64, "qkv"),
    "image": (IMAGE, 32, 192, 64, "qkv"),
    "text, v alone": (TEXT, 8, 768, 64, "v"),
    "heads of 128": (TEXT, 8, 512, 128, "qkv"),
    "heads of 256": (TEXT, 8, 512, 256, "qkv"),
    "heads of 48": (TEXT, 8, 192, 48, "qkv"),
    "float32": (TEXT, 8, 192, 64, "qkv", torch.float32),
    "float32, heads of 128": (TEXT, 8, 256, 128, "qkv", torch.float32),
    "float32, heads of 256": (TEXT, 8, 256, 256, "qkv", torch.float32),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    "name", [name if name == "text" else pytest.param(name, marks=pytest.mark.soak) for name in LAYERS]
)
def test_kernels_fit_the_card_and_spill_nothing(compiler, card, name):  # noqa: F811
    architecture, kib = CARDS[card]
    with recorded(card) as launches:
        both_passes(*shared_layer(*LAYERS[name]))
    found = {launch.kernel: launch for launch in launches if launch.module.startswith("bands.")}
    assert set(found) == KERNELS
    for launch in found.values():
        arguments = tuple(POINTERS[a.dtype] if isinstance(a, torch.Tensor) else a for a in launch.arguments)
        job = compiler.submit(
            resources, launch.module, launch.kernel, arguments, launch.options, architecture
        )
        used = job.result(timeout=60)
        assert used["STACK"] == used["LOCAL"] == 0, (launch.kernel, used)
        assert used["REG"] * 32 * launch.options["num_warps"] <= 65536, (launch.kernel, used)
        assert used["shared"] <= kib * 1024, (launch.kernel, used)
        assert used["products"] or "float32" in name, f"{launch.kernel} uses no tensor cores"
