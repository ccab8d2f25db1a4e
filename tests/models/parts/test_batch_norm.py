"""Batch norms count recomputed layers once, and keep their statistics in float32."""

import pytest
import torch

from models.parts.batch_norm import BatchNorm
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import Mesh, ParallelConfig
from trainer.train import train_step
from trainer.verify.nets import net_named


def test_it_is_torchs_in_training_and_evaluation():
    ours, theirs = BatchNorm(3).double(), torch.nn.BatchNorm2d(3).double()
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64) * 3 + 1
    for _ in range(2):
        assert torch.allclose(ours(x), theirs(x), atol=1e-12)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-12)  # pyright: ignore
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-12)


def test_statistics_stay_in_float32():
    norm = BatchNorm(3).bfloat16()
    assert norm.weight.dtype == torch.bfloat16
    assert {b.dtype for b in norm.buffers()} == {torch.float32}
    assert norm(torch.randn(4, 3).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("activations", ["block", "block_cpu", "operator"])
def test_recomputing_layers_leaves_the_same_statistics(activations: str):
    torch.manual_seed(0)
    batch = torch.randn(4, 1, 20, 20), torch.tensor([1, 2, 3, 4])
    found = {}
    for policy in ("none", activations):
        engine = build_engine(
            net_named("xcit"),
            OptimizerConfig(steps=3),
            ParallelConfig.model_validate({"activations": policy}),
            Mesh(),
            torch.device("cpu"),
            batch=4,
        )
        for _ in range(2):
            train_step(engine, [batch])
        found[policy] = dict(engine.model.named_buffers())
    assert found["none"]
    for name, statistic in found["none"].items():
        assert torch.allclose(statistic, found[activations][name], atol=1e-6), name
        assert not torch.equal(statistic, torch.full_like(statistic, float("var" in name)))
