"""A process of an older start of a run writes nothing more."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parallel.checkpoint.contents import Index
from parallel.checkpoint.save import Saver
from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from parallel.mesh import Mesh
from parallel.sharding.layout import Shard
from tests.tiny import TINY
from trainer.config.run import RunConfig
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.ownership import START_TOKEN, LostOwnership, Ownership
from trainer.run_directory.run_directory import RunDirectory


def save(path: Path, check: Callable[[], None]) -> None:
    net = torch.nn.Linear(2, 2)
    state = TorchEngine(net, OptimizerConfig(), torch.device("cpu")).state()
    saver = Saver(
        {name: Shard(tuple(p.shape)) for name, p in net.named_parameters()}, Mesh(), background=True
    )
    described = {"step": 1, "samples": 1, "mesh": {}, "parameters": {}, "buffers": {}, "run": {}}
    saver.start(path, state, Index(**described, manifests=()), check)
    saver.finish()


def test_an_older_start_writes_no_metrics_no_result_and_no_checkpoint(tmp_path: Path):
    stale, newest = RunDirectory(tmp_path), RunDirectory(tmp_path)
    stale.ownership.claim()
    stale.append_metrics([{"step": 1}])
    newest.ownership.claim()
    newest.append_metrics([{"step": 2}])
    for write in (
        lambda: stale.append_metrics([{"step": 3}]),
        lambda: stale.append_save(3, 0.1, 0.1, 10),
        lambda: stale.save_result({"step": 3}),
        lambda: stale.forget_after(0),
        lambda: save(stale.checkpoints / "step-00000003", stale.ownership.check),
    ):
        with pytest.raises(LostOwnership, match="a newer start of this run"):
            write()
    assert [record["step"] for record in newest.read_metrics()] == [1, 2]
    assert newest.read_result() is None
    assert not checkpoints(newest.checkpoints)


def test_a_checkpoint_is_dropped_when_a_newer_start_claims_the_run_while_it_is_written(tmp_path: Path):
    stale, newest = Ownership(tmp_path), Ownership(tmp_path)
    stale.claim()
    calls = []

    def check() -> None:
        stale.check()
        calls.append(1)
        newest.claim()

    with pytest.raises(LostOwnership):
        save(tmp_path / "checkpoints" / "step-00000001", check)
    assert calls == [1]
    assert not checkpoints(tmp_path / "checkpoints")


def test_the_ranks_of_one_start_share_the_launchers_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(START_TOKEN, "job 7, start 0")
    ranks = [Ownership(tmp_path), Ownership(tmp_path)]
    for number, owner in enumerate(ranks):
        monkeypatch.setenv("RANK", str(number))
        owner.claim()
    for owner in ranks:
        owner.check()
    monkeypatch.setenv(START_TOKEN, "job 7, start 1")
    Ownership(tmp_path).claim()
    for owner in ranks:
        with pytest.raises(LostOwnership, match=r"start 1.*start 0"):
            owner.check()


@pytest.mark.parametrize("late", ["job 7, start 1", "job 6, start 9"])
def test_an_older_start_that_claims_late_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
):
    monkeypatch.setenv(START_TOKEN, "job 7, start 2")
    newest = RunDirectory(tmp_path)
    newest.ownership.claim()
    newest.append_metrics([{"step": 1}])
    monkeypatch.setenv(START_TOKEN, late)
    with pytest.raises(LostOwnership):
        RunDirectory(tmp_path).create(RunConfig.model_validate(TINY | {"name": "tiny"}), again=True)
    assert newest.read_metrics() == [{"step": 1}]
    newest.ownership.check()


def test_a_later_job_owns_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for token in ("job 9, start 2", "job 10, start 0"):
        monkeypatch.setenv(START_TOKEN, token)
        owner = Ownership(tmp_path)
        owner.claim()
        owner.check()
