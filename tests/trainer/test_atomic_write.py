"""Files are replaced whole or not at all."""

from pathlib import Path

import pytest

from parallel.errors import UserError
from trainer.atomic_write import atomic_write


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text("old")
    atomic_write(path, "new", durable=True)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError, match="half way"):
        atomic_write(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone/file: cannot be written: No such file or directory"):
        atomic_write(tmp_path / "gone" / "file", "text")
