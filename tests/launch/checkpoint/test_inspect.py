"""`translution inspect` says what is there, and what is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import build_model
from tests.parallel.checkpoint.nets import write
from tests.parallel.sharding.test_layout import NETS
from tests.saved import flip_byte


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with torch.device("meta"):
        net = build_model(NETS["vit"])
    for step, mesh in ((3, (1, 1, 1)), (6, (2, 2, 1))):
        write(tmp_path / "checkpoints" / f"step-{step:08d}", net, mesh, zero=3, step=step)
    return tmp_path


def test_steps_tensors_shapes_and_writers_are_listed(run: Path, translution: Callable):
    found = translution("inspect", run)
    assert found.code == 0, found.err
    first, second, _, _, *tensors = found.out.splitlines()
    assert first.startswith("step-00000003  24 samples  ")
    assert second.startswith("step-00000006  48 samples  ")
    assert "data 2 × offset 2 × tensor 1" in second
    assert second.endswith("all files are there")
    (bank,) = [line for line in tensors if line.startswith("layers.0.mixer.q_bank ")]
    assert bank.split(maxsplit=1)[1].startswith("[28, 8, 8]")
    assert bank.endswith("weight, exp_avg, exp_avg_sq  by ranks 0–3")
    (mean,) = [line for line in tensors if line.startswith("mean ")]
    assert mean.endswith("buffer  by rank 0")


def test_damage_is_named(run: Path, translution: Callable):
    flip_byte(run / "checkpoints" / "step-00000006" / "rank-0002.exp_avg.safetensors", -3)
    (run / "checkpoints" / "step-00000003" / "index.json").write_text("{}")
    first, second, *_ = translution("inspect", run).out.splitlines()
    assert first == "step-00000003  DAMAGED: index.json: is not what was written"
    assert second.endswith("all files are there")
    _, second, *_ = translution("inspect", run, "--verify").out.splitlines()
    assert "DAMAGED: rank-0002.exp_avg.safetensors: bytes from " in second
    one = translution("inspect", run / "checkpoints" / "step-00000006", "--verify").out
    assert one.startswith("step-00000006")
    assert translution("inspect", run / "checkpoints").code == 2
