"""The files of a run directory."""

import os
from pathlib import Path

from trainer.run_directory.run_directory import RunDirectory


def test_what_killed_processes_have_left_is_cleared_and_what_is_being_written_is_not(tmp_path: Path):
    old, new = tmp_path / ".metrics.jsonl.host.77.new", tmp_path / ".config.yaml.host.78.new"
    for path in (old, new, tmp_path / "notes.new"):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(tmp_path / "notes.new", (0, 0))
    RunDirectory(tmp_path).clear_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "notes.new"]
