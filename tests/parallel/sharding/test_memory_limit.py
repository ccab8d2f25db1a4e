"""A net whose banks exceed what each rank may hold trains with offset 4, and not with offset 1."""

import resource
from pathlib import Path

import pytest
import torch

from models import ViTConfig
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import ParallelConfig, join_mesh
from parallel.processes import join_processes
from parallel.spawn import run_processes
from trainer.data.source import Batch
from trainer.train import train_step

# 12 × 12 tokens: 529 offsets, 3 banks of 529 × 96² numbers are 58 MB in float32.
NET = ViTConfig.model_validate(
    {
        "image_size": 24,
        "patch_size": 2,
        "channels": 1,
        "classes": 8,
        "width": 96,
        "depth": 1,
        "mlp": 96,
        "pool": "mean",
        "mixer": {"kind": "translution", "heads": 2, "head_dim": 48, "workspace": 4 << 20},
    }
)
BANKS = 3 * 529 * 96 * 96 * 4
# Weights, gradients and two moments are four times the banks; of a quarter of them one time.
LIMIT = 2.5 * BANKS


def test_banks_beyond_the_limit_train_when_four_ranks_share_them():
    losses = run_processes(step_under_limit, 4, 4, seconds=100)
    assert len(set(losses)) == 1
    with pytest.raises(RuntimeError, match=r"can't allocate memory|MemoryError"):
        run_processes(step_under_limit, 1, 1, seconds=100)


def step_under_limit(offset: int) -> float:
    """The loss of one step, in a process whose data may grow by LIMIT from here on.

    The limit is on private writable memory (RLIMIT_DATA), for torch reserves more address space than it
    uses.
    """
    join_processes(torch.device("cpu"))
    parallel = ParallelConfig(offset=offset)
    mesh = join_mesh(parallel)
    now = data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (int(now + LIMIT), resource.RLIM_INFINITY))
    cpu = torch.device("cpu")
    engine = build_engine(NET, OptimizerConfig(), parallel, mesh, cpu, batch=2)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn((2, 1, 24, 24), generator=generator), torch.tensor([1, 5]))
    for _ in range(2):  # the moments of the first are there in the second
        result = train_step(engine, [batch])
    return round(result.loss.item(), 4)


def data_bytes() -> int:
    """This process's private writable memory, as RLIMIT_DATA counts it."""
    (line,) = [row for row in Path("/proc/self/status").read_text().split("\n") if row.startswith("VmData")]
    return int(line.split()[1]) * 1024
