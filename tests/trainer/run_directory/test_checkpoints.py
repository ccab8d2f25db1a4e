"""Which checkpoints a run has, keeps, and sets aside."""

from pathlib import Path

import pytest

from parallel.checkpoint.contents import INDEX
from parallel.errors import UserError
from trainer.run_directory.checkpoints import (
    checkpoint_path,
    checkpoints,
    delete_old,
    hide_damaged,
    put_back,
    set_aside,
)


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        path = checkpoint_path(folder, step)
        path.mkdir(parents=True)
        (path / INDEX).touch()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_few_are_kept_in_the_order_of_steps(tmp_path: Path):
    make(tmp_path, 9, 10, 100, 1000, 100_000_000)
    delete_old(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00001000", "step-100000000"]
    assert names(tmp_path) == ["step-00001000", "step-100000000"]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path):
    make(tmp_path, 5, 10, 15, 20, 25, 30)
    delete_old(tmp_path, 1, keep_every=10)
    assert names(tmp_path) == ["step-00000010", "step-00000020", "step-00000030"]


def test_a_folder_without_an_index_is_no_checkpoint_and_what_killed_saves_left_is_deleted(tmp_path: Path):
    make(tmp_path, 1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / ".step-00000003.0123abcd.new").mkdir()
    (tmp_path / ".step-00000003.0123abcd.new" / INDEX).touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    delete_old(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_damaged_one_counts_as_none_and_goes_when_the_run_is_past_it(tmp_path: Path):
    make(tmp_path, 1, 2)
    hide_damaged(tmp_path / "step-00000002")
    delete_old(tmp_path, 1)
    assert names(tmp_path) == [".damaged-step-00000002", "step-00000001"]
    make(tmp_path, 2)
    delete_old(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_checkpoints_can_be_set_aside_and_put_back(tmp_path: Path):
    make(tmp_path, 1, 2, 3)
    before = names(tmp_path)
    aside = set_aside(tmp_path, after=1)
    assert aside
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    put_back(aside)
    assert names(tmp_path) == before
    assert set_aside(tmp_path, after=3) is None
    with pytest.raises(UserError, match=r"step 5: .* has no checkpoint of this step; it has 1, 2, 3"):
        set_aside(tmp_path, after=5)


def test_an_older_versions_checkpoints_are_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000003.pt").touch()
    with pytest.raises(UserError, match=rf"convert it once with translution convert-checkpoint {tmp_path}$"):
        checkpoints(tmp_path / "checkpoints")
    make(tmp_path / "checkpoints", 3)
    assert len(checkpoints(tmp_path / "checkpoints")) == 1
