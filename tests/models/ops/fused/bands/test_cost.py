"""The counted costs belong to the launches that are made, and a pass keeps to its workspace."""

from dataclasses import replace

import pytest

from models.offsets import OffsetGrid
from tests.models.ops.fused.bands.launches import both_passes, recorded, shared_layer
from tests.models.ops.fused.test_cost import Counter

TEXT = OffsetGrid((1024,), causal=True, share="log")
IMAGE = OffsetGrid((14, 14), class_token=True, share="clip(2)")


def count(*arguments):
    with Counter() as counter:
        both_passes(*arguments)
    return counter


@pytest.mark.parametrize(
    ("grid", "relative", "torchs"),
    [(TEXT, "qkv", 7), (TEXT, "v", 5 + 2)],  # casts each way and ∂x's zeros; and ∂q, ∂k are added by torch
    ids=["all", "v alone"],
)
def test_one_cost_a_launch(grid, relative, torchs):
    layer = shared_layer(grid, 2, 192, relative=relative)
    with recorded() as launches:
        both_passes(*layer)
    costs = [c for costs in count(*layer).costs.values() for c in costs]
    assert len(costs) == len(launches) + torchs


def test_products_are_those_of_the_rows():
    """Three projections forward, three again, and six backward; tiles of single rows are padded."""
    recipe, schedule, sources, banks = shared_layer(TEXT, 8, 768)
    layer = recipe, schedule, sources, banks
    costs = [c for costs in count(*layer).costs.values() for c in costs]
    queries, keys = schedule.rows
    products = 4 * 2 * (queries + 2 * keys) * 8 * 768 * 768
    assert products < sum(c.flops for c in costs) < 1.25 * products


def test_a_pass_takes_no_more_than_its_workspace():
    recipe, schedule, sources, banks = shared_layer(IMAGE, 128, 192)
    for workspace in (1 << 28, 1 << 30):
        counter = count(replace(recipe, workspace=workspace), schedule, sources, banks)
        forward, backward = counter.workspaces.values()
        assert forward < backward
        assert 0.6 * workspace < backward <= workspace + 4 * sources[0].nbytes  # and a slice's copies
