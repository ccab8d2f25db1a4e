"""Stages that reduce tokens, in whole nets."""

import pytest
import torch
from pydantic import ValidationError

from models import build_model
from models.reducers.groups import token_groups
from models.transformer import ViTConfig
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.flops import sample_flops
from parallel.planner.layers import LayerKinds
from parallel.spawn import run_processes
from tests.parallel.planner.planned_steps import Case, payloads

ATTENTION = {"kind": "attention", "heads": 2, "head_dim": 8}
KINDS = {
    "evit": {"kind": "evit", "keep": 0.6},
    "decouple": {"kind": "decouple", "keep": 0.6},
    "density_peaks": {"kind": "density_peaks", "keep": 0.6},
    "random": {"kind": "random", "keep": 0.6},
    "uniform": {"kind": "uniform", "keep": 0.6},
    "dynamicvit": {"kind": "dynamicvit", "ratio": 0.6},
}


def vit(reduce: dict, pool: str = "cls", mixer: dict = ATTENTION, **values: object) -> ViTConfig:
    stages = [{"layers": 1, "mixer": mixer, "reduce": reduce}, {"layers": 1, "mixer": ATTENTION}]
    size = {"image_size": 24, "patch_size": 4, "classes": 4, "width": 16, "mlp": 32, "position": "learned"}
    return ViTConfig.model_validate({**size, "pool": pool, "stages": stages, **values})


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("reduce", KINDS.values(), ids=KINDS)
def test_every_reducer_trains_and_tells_what_became_of_each_patch(reduce: dict, pool: str):
    torch.manual_seed(0)
    net, images = build_model(vit(reduce, pool)), torch.randn(2, 3, 24, 24)
    net(images, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in net.parameters())
    (found,) = token_groups(net, images)
    left = {"evit": 23, "dynamicvit": 21}.get(reduce["kind"], 22)
    assert (found.layer, found.tokens, found.group.shape) == (0, left, (2, 6, 6))
    for group, size in zip(found.group, found.size, strict=True):
        kept = group[group >= 0]
        assert set(kept.tolist()) == set(range(left))
        assert torch.equal(size[group >= 0], torch.bincount(kept)[kept])
    merges = reduce["kind"] in ("evit", "decouple", "density_peaks")
    assert merges == bool((found.group >= 0).all())


SMALL_KEEPS = {"0.7": 3.0, "0.6": 2.6, "0.5": 2.3, "0.4": 2.1, "0.3": 1.8, "0.2": 1.6}


@pytest.mark.parametrize("kind", ["evit", "decouple"])
@pytest.mark.parametrize(("keep", "giga"), SMALL_KEEPS.items())
def test_deit_small_costs_what_was_published(kind: str, keep: str, giga: float):
    reduce = {"kind": kind, "keep": float(keep)}
    assert deit_small(reduce) == pytest.approx(giga, abs=0.1)


def test_deit_small_without_reductions_costs_what_was_published():
    assert deit_small(None) == pytest.approx(4.598882304, rel=1e-3)


def deit_small(reduce: dict | None) -> float:
    """Multiply-adds of an image, in billions; reductions in layers 4, 7 and 10."""
    stages = [{"layers": layers, "reduce": reduce} for layers in (4, 3, 3)] + [{"layers": 2}]
    mixer = {"kind": "attention", "heads": 6, "head_dim": 64, "bias": True}
    values = {"width": 384, "mlp": 1536, "mixer": mixer, "stages": stages, "position": "learned"}
    config = ViTConfig.model_validate(values | {"stem": "projection"})
    return sample_flops(LayerKinds(config), Mesh(), ParallelConfig()).forward / 2e9


def test_keeping_all_tokens_reduces_nothing():
    net = build_model(vit({"kind": "evit", "keep": 1.0}, mixer={"kind": "translution", "heads": 2}))
    assert net.layers[0].reduce is None
    assert net.config.layer_specs()[1].tokens.shape == (6, 6)


REFUSED = {
    "no grid": (
        {
            "stages": [{"layers": 1, "reduce": KINDS["uniform"]}, {"layers": 1}],
            "mixer": {"kind": "translution"},
        },
        "mixer translution knows offsets on a grid",
    ),
    "rope": (
        {
            "stages": [{"layers": 1, "reduce": KINDS["uniform"]}, {"layers": 1, "position": "rope"}],
            "mixer": ATTENTION,
        },
        "position rope: it knows places on a grid",
    ),
    "no weights": (
        {"stages": [{"layers": 1, "reduce": KINDS["evit"]}], "mixer": {"kind": "tssa"}},
        "mixer tssa has no attention weights",
    ),
    "no mask": (
        {
            "stages": [
                {"layers": 1, "reduce": KINDS["dynamicvit"]},
                {"layers": 1, "mixer": {"kind": "tssa"}},
            ],
            "mixer": ATTENTION,
        },
        "mixer tssa cannot mask",
    ),
    "after masks": (
        {
            "stages": [{"layers": 1, "reduce": KINDS["dynamicvit"]}, {"layers": 1, "reduce": KINDS["evit"]}],
            "mixer": ATTENTION,
        },
        "only masks tokens",
    ),
    "keep": ({"stages": [{"layers": 1, "reduce": {"kind": "evit", "keep": 1.5}}]}, "less than or equal to 1"),
}


@pytest.mark.parametrize(("values", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_when_the_config_is_read(values: dict, says: str):
    with pytest.raises(ValidationError, match=says):
        ViTConfig.model_validate({"width": 12, **values})


PLANNED = {
    "class token, offset 2": (ParallelConfig(offset=2), "cls"),
    "mean, offset 2": (ParallelConfig(offset=2, activations="operator"), "mean"),
    "mean, tensor 2": (ParallelConfig(tensor=2), "mean"),
}


def test_traffic_of_a_net_that_ranks_its_tokens_is_planned():
    translution = {"kind": "translution", "heads": 2, "head_dim": 8}
    cases = [Case(vit(KINDS["decouple"], pool, translution), parallel) for parallel, pool in PLANNED.values()]
    for rank in run_processes(payloads, 2, cases, seconds=100):
        for name, (counted, predicted) in zip(PLANNED, rank, strict=True):
            assert counted == predicted, name
