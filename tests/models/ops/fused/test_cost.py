"""The counted costs belong to the launches that are made, and meet what the kernels were chosen for."""

from dataclasses import replace

import pytest
import torch

from models.offsets import OffsetGrid
from models.ops.fused.walk import FusedWalk
from models.ops.kernel_cost import COSTS, WORKSPACES
from tests.models.ops.fused.launches import both_passes, full_translution, recorded

IMAGE = OffsetGrid((14, 14), class_token=True)
TEXT = OffsetGrid((1024,), causal=True)
ZEROS = 1  # ∂x begins as zeros, by torch


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    """Collects the costs of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.costs, self.workspaces = {}, {}

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator in COSTS:
            self.costs[operator.name()] = COSTS[operator](*arguments, **(options or {}))
            self.workspaces[operator.name()] = WORKSPACES[operator](*arguments, **(options or {}))
        return operator(*arguments, **(options or {}))


def count(grid, batch, channels, bank_dtype=torch.bfloat16):
    with Counter() as counter:
        both_passes(*full_translution(grid, batch, channels, bank_dtype=bank_dtype))
    return [c for costs in counter.costs.values() for c in costs]


def seconds(costs):
    """On an H100: bfloat16 products, memory, second-level cache, and the least time of a kernel."""
    return sum(max(c.memory_bytes / 3e12, c.cache_bytes / 5.5e12, c.flops / 800e12, 2e-6) for c in costs)


@pytest.mark.parametrize("bank_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("grid", "batch", "channels"),
    [(IMAGE, 32, 192), (IMAGE, 256, 768), (TEXT, 8, 768), (OffsetGrid((7, 7)), 256, 384)],
    ids=str,
)
def test_one_cost_a_launch_and_few_launches(grid, batch, channels, bank_dtype):
    with recorded() as launches:
        both_passes(*full_translution(grid, batch, channels, bank_dtype=bank_dtype))
    assert len(count(grid, batch, channels, bank_dtype)) == len(launches) + ZEROS
    assert len(launches) < 500


@pytest.mark.parametrize(("channels", "share"), [(768, 0.35), (384, 0.3), (192, 0.25)])
@pytest.mark.parametrize("batch", [128, 256])
def test_share_of_the_peak_by_the_count(channels, share, batch):
    """Useful products (3 forward, 6 backward) over the counted time."""
    useful = 9 * 2 * IMAGE.num_pairs * batch * channels * channels / 800e12
    assert useful / seconds(count(IMAGE, batch, channels)) > share


def test_flops_are_those_of_twelve_products_where_nothing_is_padded():
    """Forward 3, recomputed 3, and 6; at 128 samples only the rows of short runs would be padded."""
    flops = sum(c.flops for c in count(OffsetGrid((4, 4)), 128, 256))
    assert flops == 12 * 2 * 16**2 * 128 * 256 * 256


def test_memory_bytes_are_at_least_the_banks_and_the_results():
    recipe, schedule, sources, banks = full_translution(IMAGE, 32, 192)
    with Counter() as counter:
        FusedWalk.forward(recipe, schedule, sources, banks)
    ((forward,),) = counter.costs.values()
    lse, out = 197 * 32 * 3 * 4, 197 * 32 * 192 * 4
    assert forward.memory_bytes == sum(t.nbytes for t in (*sources, *banks)) + lse + out
    assert forward.cache_bytes > 10 * forward.memory_bytes


@pytest.mark.parametrize("bank_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_pass_takes_no_more_than_its_workspace(bank_dtype):
    """All of it in backward, with ∂x's sums, but for what is left by the last class that did not fit."""
    recipe, schedule, sources, banks = full_translution(IMAGE, 128, 192, bank_dtype=bank_dtype)
    for workspace in (1 << 27, 1 << 30):
        with Counter() as counter:
            both_passes(replace(recipe, workspace=workspace), schedule, sources, banks)
        forward, backward = counter.workspaces.values()
        backward += 4 * sources[0].numel()
        assert forward <= workspace
        assert 0.7 * workspace < backward <= workspace
