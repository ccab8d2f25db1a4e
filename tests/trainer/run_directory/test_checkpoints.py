"""Checkpoints: whole or not there."""

import resource
from pathlib import Path

import pytest
import torch

from parallel.errors import UserError
from trainer.run_directory.checkpoints import (
    checkpoints,
    load_checkpoint,
    put_back,
    save_checkpoint,
    set_aside,
)

CPU = torch.device("cpu")


def state(value: float, size: int = 10) -> dict:
    return {"engine": {"w": torch.full((size,), value)}, "samples": 7}


def test_what_was_saved_is_loaded(tmp_path: Path):
    path = save_checkpoint(tmp_path / "checkpoints", 12, state(1.5), keep=2)
    loaded = load_checkpoint(path)
    assert loaded["samples"] == 7
    assert torch.equal(loaded["engine"]["w"], torch.full((10,), 1.5))


def test_the_newest_few_are_kept_in_the_order_of_steps(tmp_path: Path):
    for step in (9, 10, 100, 1000):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000100.pt", "step-00001000.pt"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_torn_checkpoint_is_never_taken_for_one(tmp_path: Path):
    whole = save_checkpoint(tmp_path, 1, state(1), keep=2)
    (tmp_path / ".step-00000002.pt.new").write_bytes(whole.read_bytes()[:100])
    assert checkpoints(tmp_path) == [whole]


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint(tmp_path: Path):
    whole = save_checkpoint(tmp_path, 1, state(1), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"step-00000002\.pt: cannot write the checkpoint: "):
            save_checkpoint(tmp_path, 2, state(2, size=100_000), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [whole]
    assert load_checkpoint(whole)["engine"]["w"][0] == 1


@pytest.mark.parametrize("keep_bytes", [0, 50, 900])
def test_a_damaged_file_is_named(tmp_path: Path, keep_bytes: int):
    path = save_checkpoint(tmp_path, 1, state(1), keep=1)
    path.write_bytes(path.read_bytes()[:keep_bytes])
    with pytest.raises(UserError, match=f"{path.name}: damaged checkpoint"):
        load_checkpoint(path)


def test_parts_without_their_checkpoint_are_deleted_by_the_next_save(tmp_path: Path):
    (tmp_path / "step-00000001.part0").write_bytes(b"a process was killed")
    (tmp_path / ".step-00000001.pt.host.77.new").write_bytes(b"another")
    save_checkpoint(tmp_path, 2, state(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]


def test_checkpoints_can_be_set_aside_and_put_back(tmp_path: Path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    whole = {path.name: path.read_bytes() for path in checkpoints(tmp_path)}
    aside = set_aside(tmp_path, after=1)
    assert aside
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001.pt"]
    put_back(aside)
    assert {path.name: path.read_bytes() for path in checkpoints(tmp_path)} == whole
    assert not aside.exists()
    assert set_aside(tmp_path, after=3) is None
    with pytest.raises(UserError, match=r"step 5: .* has no checkpoint of this step; it has 1, 2, 3"):
        set_aside(tmp_path, after=5)
