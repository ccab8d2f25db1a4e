"""An older version's run goes on after its checkpoints were converted, as it did then."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks import losses

RECORDED = Path(__file__).parents[2] / "fixtures" / "old_checkpoint"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RECORDED, tmp_path / "run")


def test_a_converted_run_goes_on_with_the_losses_that_it_had(run: Path, translution: Callable):
    expected = losses(run)
    alone = "parallel.offset=1"
    refused = translution("train", "--resume", run, alone)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"convert it once with translution convert-checkpoint {run}" in refused.err
    converted = translution("convert-checkpoint", run)
    assert converted.code == 0, converted.err
    assert f"wrote {run / 'checkpoints' / 'step-00000003'}" in converted.out
    resumed = translution("train", "--resume", run, alone)
    assert resumed.code == 0, resumed.err
    assert "going on from step 3" in resumed.out
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    assert losses(run)[:3] == expected[:3]
    assert len(expected) == 6


@pytest.mark.parametrize("part", ["step-00000003.pt", "step-00000003.part1"])
def test_a_damaged_old_checkpoint_is_one_line_and_leaves_nothing(run: Path, translution: Callable, part: str):
    file = run / "checkpoints" / part
    file.write_bytes(file.read_bytes()[:-300])
    refused = translution("convert-checkpoint", run)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"{file}: damaged checkpoint" in refused.err
    assert len(list((run / "checkpoints").iterdir())) == 3
    missing = translution("convert-checkpoint", run / "checkpoints")
    assert "holds no checkpoint of an older version" in missing.err
