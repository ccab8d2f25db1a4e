"""The time of a step rests on the kernels counted for a card."""

import dataclasses

import pytest

from models import ViTConfig
from models.mixers.counted_pass import count_pass
from models.ops.cards import CARDS
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.layers import LayerKinds
from parallel.planner.plan import plan
from parallel.planner.recommend import Cluster, meshes, recommend
from parallel.planner.seconds import compute_seconds

H100 = CARDS["h100"]
OPTIONS = {"image_size": 32, "patch_size": 8, "width": 64, "mlp": 128, "depth": 3, "classes": 10}
MIXER = {"kind": "translution", "heads": 2, "head_dim": 32}


@pytest.fixture(scope="module")
def net():
    return LayerKinds(ViTConfig.model_validate({**OPTIONS, "mixer": MIXER}))


def run(net, batch=64, mesh=None, accumulate=1, precision="bf16", **parallel):
    mesh = mesh or Mesh()
    config = ParallelConfig(offset=mesh.offset, tensor=mesh.tensor, data=mesh.data, **parallel)
    return plan(net, config, mesh, batch, accumulate, precision)


def test_a_step_is_its_mixers_kernels_and_the_other_flops(net):
    (kind,) = net.kinds
    mixers = 3 * count_pass(kind.mixer, 64, H100).seconds
    feed_forward, patches, head = 3 * 4 * kind.tokens * 64 * 128, 2 * 16 * (3 * 8 * 8) * 64, 2 * 64 * 10
    flops = 3 * 64 * (feed_forward + patches + head)  # three passes, 64 samples
    other = compute_seconds(run(net), H100) - mixers
    assert other == pytest.approx(flops / H100.rate, rel=1e-3)


def test_recomputed_activations_take_another_forward_pass(net):
    (kind,) = net.kinds
    forward = 3 * count_pass(kind.mixer, 64, H100).forward.seconds
    plain, again = (compute_seconds(run(net, activations=what), H100) for what in ("none", "operator"))
    assert again - plain == pytest.approx(forward)


def test_micro_batches_are_counted_as_they_are_cut(net):
    whole, half = run(net), run(net, accumulate=2)
    assert compute_seconds(half, H100) == pytest.approx(2 * compute_seconds(run(net, batch=32), H100))
    assert compute_seconds(half, H100) > compute_seconds(whole, H100)  # launches do not shrink


def test_an_offset_rank_computes_only_its_pairs():
    wide = LayerKinds(
        ViTConfig.model_validate(
            {**OPTIONS, "image_size": 112, "width": 192, "mixer": MIXER | {"heads": 3, "head_dim": 64}}
        )
    )
    whole, part = (compute_seconds(run(wide, 64, mesh), H100) for mesh in (Mesh(), Mesh(1, 4)))
    assert 0.9 * whole / 4 < part < whole / 3


def test_no_step_is_shorter_than_its_flops(net):
    cluster = Cluster()
    for batch in (8, 1024):
        assert cluster.step_seconds(run(net, batch)) > cluster.least_seconds(run(net, batch))


def test_fp32_and_clusters_without_a_card_go_by_flops(net):
    cluster = Cluster(speed=1e12)
    by_flops = dataclasses.replace(cluster, card=None)
    assert cluster.step_seconds(run(net, precision="fp32")) == by_flops.step_seconds(run(net))
    assert by_flops.step_seconds(run(net)) == pytest.approx(run(net).sample.training * 64 / 1e12)
    assert "FLOPs at 1 TFLOP/s" in cluster.basis(run(net, precision="fp32"))
    assert cluster.basis(run(net)) == "kernels counted for NVIDIA H100 SXM, not measured"


def test_the_recommendation_is_the_fastest_of_all_meshes(net):
    cluster = Cluster(nodes=1, devices=4)
    best = recommend(net, 64, 1, "bf16", cluster)
    assert best is not None
    every = [cluster.step_seconds(run(net, 64, mesh)) for mesh in meshes(net, 4)]
    assert cluster.step_seconds(best) <= 1.1 * min(every)


def test_a_mixer_that_cannot_be_counted_goes_by_its_flops(net, monkeypatch):
    monkeypatch.setattr(LayerKinds, "counted", lambda *arguments: None)
    assert compute_seconds(run(net), H100) == pytest.approx(run(net).share.training * 64 / H100.rate)
