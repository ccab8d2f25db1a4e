"""Weights that several ranks hold are compared; the parameter and the rank that drifted are named."""

from pathlib import Path

import pytest
import torch

from models.transformer import ViTConfig
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import ParallelConfig, join_mesh
from parallel.processes import join_processes
from parallel.sharding.replicas import checksum, differing_replica
from parallel.spawn import run_processes
from tests.faulty_ranks import exit_codes, is_rank, on_fetch, started
from tests.tiny import TINY
from trainer.faults.fault_log import read_faults


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_checksum_tells_one_flipped_bit(dtype: torch.dtype):
    tensor = torch.randn(3, 5, dtype=dtype)
    before = checksum(tensor)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    tensor.view(bits)[1, 2] ^= 1
    assert checksum(tensor) != before


def _drift(parallel: ParallelConfig, cases: list[tuple[str, int]]) -> list[str | None]:
    """What is found in an intact net, and after changing one parameter of one rank."""
    join_processes(torch.device("cpu"), group_of_one=True)
    mesh = join_mesh(parallel)
    model = ViTConfig.model_validate(TINY["model"])
    engine = build_engine(model, OptimizerConfig(), parallel, mesh, torch.device("cpu"), batch=8)
    found = [differing_replica(engine.model, mesh)]
    for name, rank in cases:
        parameter = engine.model.get_parameter(name)
        with torch.no_grad():
            before = parameter.clone()
            parameter.flatten()[0] += mesh.rank == rank
            found.append(differing_replica(engine.model, mesh))
            parameter.copy_(before)
    return found


BANK, NORM = "layers.0.mixer.q_bank", "layers.0.mixer_norm.weight"


@pytest.mark.parametrize(
    ("world", "parallel", "cases", "found"),
    [
        (4, ParallelConfig(), [(BANK, 2)], [f"{BANK} differs on rank 2"]),
        (
            4,
            ParallelConfig(offset=2),
            [(BANK, 3), (NORM, 1)],
            [f"{BANK} differs between ranks 1, 3", f"{NORM} differs on rank 1"],
        ),
        (2, ParallelConfig(engine="deepspeed", zero=3), [], []),
    ],
    ids=["data", "data-offset", "zero-3"],
)
def test_a_changed_parameter_is_named_with_its_rank_on_every_rank(world, parallel, cases, found):
    assert run_processes(_drift, world, parallel, cases, seconds=60) == [[None, *found]] * world


def change_a_weight() -> None:
    """On rank 1, after three steps."""
    from trainer import train

    built = train.build_engine

    def build(*arguments):
        engine = built(*arguments)

        def change(count: int, batch: object) -> object:
            if is_rank(1) and count == 4:
                with torch.no_grad():
                    engine.model.get_parameter(BANK)[0, 0, 0] += 1
            return batch

        on_fetch(change)
        return engine

    train.build_engine = build


def test_a_drifted_replica_ends_the_run_before_it_is_saved(config_file: Path, tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = ["train.check_every=2", "train.checkpoint_every=4", "train.steps=9"]
    with started(2, [config_file, f"run_dir={run}", *overrides], change_a_weight, log) as ranks:
        assert exit_codes(ranks, 60) == [1, 1], log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: parameter {BANK} differs between ranks 0, 1, which should hold the same")
    assert [fault["fault"] for fault in read_faults(run)] == ["drift"]
    assert not (run / "checkpoints").exists()
