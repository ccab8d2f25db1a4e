"""A process that outlived its run's restart writes nothing more."""

from pathlib import Path

import pytest

from tests.tiny import TINY
from trainer.config.run import RunConfig
from trainer.run_directory.checkpoints import checkpoints, save_checkpoint
from trainer.run_directory.ownership import LIFE, Fence, Superseded
from trainer.run_directory.run_directory import RunDirectory


def test_an_older_life_writes_no_metrics_no_result_and_no_checkpoint(tmp_path: Path):
    stale, newest = RunDirectory(tmp_path), RunDirectory(tmp_path)
    stale.fence.claim()
    stale.append_metrics([{"step": 1}])
    newest.fence.claim()
    newest.append_metrics([{"step": 2}])
    for write in (
        lambda: stale.append_metrics([{"step": 3}]),
        lambda: stale.append_save(3, 0.1, 10),
        lambda: stale.save_result({"step": 3}),
        lambda: stale.forget_after(0),
        lambda: save_checkpoint(stale.checkpoints, 3, {}, 2, stale.fence.check),
    ):
        with pytest.raises(Superseded, match="taken over by a newer start"):
            write()
    assert [record["step"] for record in newest.read_metrics()] == [1, 2]
    assert newest.read_result() is None
    assert not checkpoints(newest.checkpoints)


def test_a_life_that_begins_while_an_older_one_writes_a_checkpoint_keeps_it_out(tmp_path: Path):
    stale, newest = Fence(tmp_path), Fence(tmp_path)
    stale.claim()
    calls = []

    def check() -> None:
        stale.check()
        calls.append(1)
        newest.claim()

    with pytest.raises(Superseded):
        save_checkpoint(tmp_path / "checkpoints", 1, {}, 2, check)
    assert calls == [1]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_ranks_of_one_start_share_the_launchers_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(LIFE, "job 7, start 0")
    ranks = [Fence(tmp_path), Fence(tmp_path)]
    for number, fence in enumerate(ranks):
        monkeypatch.setenv("RANK", str(number))
        fence.claim()
    for fence in ranks:
        fence.check()
    monkeypatch.setenv(LIFE, "job 7, start 1")
    Fence(tmp_path).claim()
    for fence in ranks:
        with pytest.raises(Superseded, match=r"start 1.*start 0"):
            fence.check()


@pytest.mark.parametrize("late", ["job 7, start 1", "job 6, start 9"])
def test_a_start_that_comes_late_takes_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
):
    monkeypatch.setenv(LIFE, "job 7, start 2")
    newest = RunDirectory(tmp_path)
    newest.fence.claim()
    newest.append_metrics([{"step": 1}])
    monkeypatch.setenv(LIFE, late)
    with pytest.raises(Superseded):
        RunDirectory(tmp_path).create(RunConfig.model_validate(TINY | {"name": "tiny"}), again=True)
    assert newest.read_metrics() == [{"step": 1}]
    newest.fence.check()


def test_a_resumed_run_takes_over_from_its_last_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for life in ("job 9, start 2", "job 10, start 0"):
        monkeypatch.setenv(LIFE, life)
        fence = Fence(tmp_path)
        fence.claim()
        fence.check()
