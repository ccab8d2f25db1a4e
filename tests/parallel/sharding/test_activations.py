"""Recomputed layers give what saved ones give, in float32 and under bfloat16, with either engine."""

import pytest
import torch

from models import ViTConfig
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import ParallelConfig, forget_mesh, join_mesh
from parallel.processes import join_processes
from parallel.spawn import run_processes
from trainer.data.source import Batch
from trainer.train import train_step

POLICIES = ("none", "block", "block_cpu", "operator")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "engine",
    [
        {},
        pytest.param({"engine": "deepspeed", "zero": 2}, marks=pytest.mark.soak),
        {"engine": "deepspeed", "zero": 3},
    ],
    ids=str,
)
def test_every_policy_gives_the_same_numbers(engine, precision):
    """Recomputing in another dtype than the forward pass's would give other gradients."""
    saved, *recomputed = run_processes(norms, 2, engine, precision, seconds=110)[0]
    assert recomputed == [pytest.approx(saved, rel=1e-6)] * 3


def norms(engine: dict, precision: str) -> list[list[float]]:
    """The gradient norms of two steps under each policy, on two ranks that share the banks."""
    join_processes(torch.device("cpu"))
    mixer = {"kind": "translution", "heads": 2, "head_dim": 4}
    shape = {
        "image_size": 12,
        "patch_size": 4,
        "channels": 1,
        "classes": 5,
        "width": 8,
        "depth": 2,
        "mlp": 16,
    }
    model = ViTConfig.model_validate(shape | {"mixer": mixer})
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(4, 1, 12, 12, generator=generator), torch.tensor([0, 1, 2, 3]))
    found = []
    for policy in POLICIES:
        parallel = ParallelConfig.model_validate({"offset": 2, "activations": policy} | engine)
        one = build_engine(
            model,
            OptimizerConfig(steps=4, lr=1e-2),
            parallel,
            join_mesh(parallel),
            torch.device("cpu"),
            precision=precision,
            batch=4,
        )
        found.append([train_step(one, [batch]).grad_norm.item() for _ in range(2)])
        forget_mesh()
    return found
