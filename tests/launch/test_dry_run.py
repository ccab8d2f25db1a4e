"""`translution train --dry-run` says what would happen, refuses what training refuses, and does nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = "study={model.mixer.heads: [1, 2], seed: [0, 1]}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def test_it_plans_every_net_and_writes_nothing(config_file: Path, tmp_path: Path, translution: Callable):
    done = translution("train", config_file, STUDY, "parallel.offset=2", "--processes", 2, "--dry-run")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "tiny: 4 nets of 6 steps, on cpu × 2"
    assert lines[1].startswith("  heads=1,seed=0 and 1 more: ")
    assert "parameters on data 1 × offset 2 × tensor 1: " in lines[2]
    assert lines[-1] == "dry run: nothing was started or written"
    assert not list((tmp_path / "empty").iterdir())


def test_it_refuses_what_training_refuses(config_file: Path, tmp_path: Path, translution: Callable):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config_file.read_text())
    (tmp_path / "file").touch()
    for words, says in [
        ([config_file, f"run_dir={run}"], f"run_dir={run} already holds a run"),
        (["--resume", run], f"{run}: holds no checkpoint to resume from"),
        ([config_file, "train.stepz=3"], "unknown key train.stepz=3"),
        ([config_file, "data.path=nowhere"], "data.path=nowhere: no such folder"),
        ([config_file, f"run_dir={tmp_path / 'file' / 'run'}"], "is not a folder that you may write to"),
        ([config_file, "parallel.offset=2", "--processes", 3], "does not divide the 3 processes"),
    ]:
        done = translution("train", *words, "--dry-run")
        assert done.code == 2
        assert says in done.err
        assert done.err.count("\n") == 1
