"""The DeepSpeed engine: what verify's comparison of whole layouts does not see."""

import os

import pytest
import torch
import torch.nn.functional as F

from models import ViTConfig
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, join_mesh
from parallel.processes import join_processes
from parallel.spawn import run_processes

SHAPE = {"image_size": 8, "patch_size": 4, "channels": 1, "classes": 5, "width": 8, "depth": 1, "mlp": 16}
NET = ViTConfig.model_validate(SHAPE | {"mixer": {"kind": "translution", "heads": 2, "head_dim": 4}})
CPU = torch.device("cpu")


def test_bf16_leaves_the_class_shares_of_mixed_images_in_float32():
    ours, expected, rounded = run_processes(losses_of_mixed_images, 1, seconds=100)[0]
    assert ours == expected
    assert ours != rounded


def losses_of_mixed_images() -> tuple[float, float, float]:
    """The engine's loss, and that of its logits with targets in float32 and in bfloat16; in a process
    that no launcher gave a LOCAL_RANK."""
    del os.environ["LOCAL_RANK"]
    join_processes(CPU, group_of_one=True)
    parallel = ParallelConfig(engine="deepspeed", zero=1)
    mesh = join_mesh(parallel)
    engine = build_engine(NET, OptimizerConfig(), parallel, mesh, CPU, precision="bf16", batch=4)
    images, shares = torch.randn(4, 1, 8, 8), torch.rand(4, 5).softmax(-1)
    with torch.no_grad():
        logits = engine.model(images).float()
        ours = engine.net(images, shares)
    rounded = shares.bfloat16().float()
    return ours.item(), F.cross_entropy(logits, shares).item(), F.cross_entropy(logits, rounded).item()


def test_bf16_without_zero_is_refused():
    parallel = ParallelConfig(engine="deepspeed", zero=0)
    with pytest.raises(UserError, match=r"precision=bf16 with parallel\.zero=0"):
        build_engine(NET, OptimizerConfig(), parallel, Mesh(), CPU, precision="bf16", batch=4)
