"""A checkpoint that cannot be written: what is said, what is left, and whether the run goes on."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parallel.checkpoint.storage import RankFilesWriter
from tests.ranks import losses
from trainer.config.run import load_config
from trainer.faults.fault_log import read_faults
from trainer.run_directory.checkpoints import checkpoints

WIDE = ("model.width=64", "model.mlp=256", "train.keep_checkpoints=9")


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """A longer file cannot be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def started(config_file: Path, tmp_path: Path, translution: Callable) -> Path:
    """A run stopped at its checkpoint of step 3."""
    run = tmp_path / "run"
    assert translution("train", config_file, f"run_dir={run}", *WIDE, "train.steps=3").code == 0
    return run


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_full_disk_stops_the_run_with_one_line_and_leaves_the_older_checkpoint(
    started: Path, translution: Callable, background: str
):
    words = ("train", "--resume", started, "train.steps=8", "train.checkpoint_every=4")
    with files_end_at(20_000):
        stopped = translution(*words, f"train.save_in_background={background}")
    assert stopped.code == 2
    assert stopped.err.count("\n") == 1
    assert "rank-0000.weight.safetensors: cannot write the checkpoint: the file is larger" in stopped.err
    assert [path.name for path in (started / "checkpoints").iterdir()] == ["step-00000003"]
    assert len(losses(started)) < 8
    resumed = translution("train", "--resume", started, "train.steps=8")
    assert resumed.code == 0, resumed.err
    assert len(losses(started)) == 8


def test_a_run_may_go_on_without_the_checkpoint(started: Path, translution: Callable):
    words = ("train", "--resume", started, "train.steps=8", "train.checkpoint_every=4")
    with files_end_at(20_000):
        done = translution(*words, "train.on_save_error=warn")
    assert done.code == 0, done.err
    for step in (4, 8):
        assert f"no checkpoint of step {step}: " in done.out
    assert "; the last is of step 3; the run goes on" in done.out
    assert len(losses(started)) == 8
    assert [path.name for path in (started / "checkpoints").iterdir()] == ["step-00000003"]
    assert [(fault["fault"], fault["step"]) for fault in read_faults(started)] == [
        ("save failed", 4),
        ("save failed", 8),
    ]


def test_a_run_directory_that_is_gone_is_one_line(
    config_file: Path, tmp_path: Path, translution: Callable, monkeypatch: pytest.MonkeyPatch
):
    run, prepare = tmp_path / "run", RankFilesWriter.prepare_global_plan

    def without_folder(writer: RankFilesWriter, plans: list) -> list:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / "checkpoints").touch()  # neither can a folder be made there, even by root
        return prepare(writer, plans)

    monkeypatch.setattr(RankFilesWriter, "prepare_global_plan", without_folder)
    refused = translution("train", config_file, f"run_dir={run}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "checkpoints" in refused.err
    assert "cannot write the checkpoint: " in refused.err


def test_the_time_that_training_stands_still_is_written(started: Path):
    (record,) = map(json.loads, (started / "saves.jsonl").read_text().splitlines())
    assert record["step"] == 3
    assert record["stall"] > 0
    assert record["seconds"] > 0
    size = sum(path.stat().st_size for path in (started / "checkpoints" / "step-00000003").iterdir())
    assert record["bytes"] == size


def fail_on_rank_1() -> None:
    write = RankFilesWriter.write_data

    def full(writer: RankFilesWriter, plan, planner):
        if os.environ["RANK"] == "1" and writer.path.name == "step-00000004":
            raise OSError(28, "No space left on device", "rank-0001.weight.safetensors")
        return write(writer, plan, planner)

    RankFilesWriter.write_data = full


def test_a_failure_of_one_rank_in_the_background_reaches_all_at_the_same_step(
    config_file: Path, tmp_path: Path, translution: Callable
):
    from tests.faulty_ranks import exit_codes
    from tests.faulty_ranks import started as started_ranks

    words = ["train.checkpoint_every=4", "train.steps=40", "parallel.offset=2", "train.log_every=1"]
    for mode, codes in (("stop", [2, 2]), ("warn", [0, 0])):
        run, log = tmp_path / mode, tmp_path / f"{mode}.log"
        arguments = [config_file, f"run_dir={run}", *words, f"train.on_save_error={mode}"]
        with started_ranks(2, arguments, fail_on_rank_1, log) as ranks:
            assert exit_codes(ranks, 60) == codes, log.read_text()
        said = "rank-0001.weight.safetensors: cannot write the checkpoint: the disk is full"
        assert said in log.read_text()
        steps = [int(path.name[5:]) for path in checkpoints(run / "checkpoints")]
        assert steps == ([] if mode == "stop" else [36, 40])
        assert load_config(run / "config.yaml", []).train.on_save_error == mode
