"""Jobs of several nodes: the losses of one process, and what becomes of them when a node fails them."""

import os
import signal
from pathlib import Path

import pytest

from launch.slurm.runs.job_record import read_notes
from tests.slurm.conftest import ROOT, Box
from tests.slurm.slurm_stage import QUICK, Stage, events, job, losses, starts, step, task_pid

DEBUG = ROOT / "configs" / "debug.yaml"

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def stage(box: Box, tmp_path: Path, tiny: dict) -> Stage:
    return Stage(box, tmp_path, tiny)


def test_four_nodes_of_two_ranks_with_offsets_and_zero_3_end_with_the_losses_of_one_process(stage: Stage):
    words = ("study=null", "device=cpu", "train.steps=10", "train.log_every=1", "data.test_samples=20")
    sharded = ("parallel.offset=2", "parallel.engine=deepspeed", "parallel.zero=3")
    one = stage.submit(*words, config=DEBUG)
    devices = (*QUICK, "--nodes", "4", "--gpus-per-node", "2")
    many = stage.submit(*words, *sharded, config=DEBUG, options=devices)
    assert stage.box.ended(job(many)) == "COMPLETED"
    assert stage.box.fact(job(many), "TresPerNode") == "gres:gpu:2"
    assert read_notes(many)[0]["nodes"] == "node[1-4]"
    assert stage.box.ended(job(one)) == "COMPLETED"
    assert [number for number, _ in losses(many)] == list(range(1, 11))
    expected = [loss for _, loss in losses(one)]
    assert [loss for _, loss in losses(many)] == pytest.approx(expected, rel=1e-5)
    assert "global_rank=7(8)" in stage.translution("logs", many, "--rank", "7")


def test_a_node_without_the_run_directory_is_named_and_the_job_does_not_start_again(stage: Stage):
    init = (stage.box.folder / "run" / "node2.init.pid").read_text().strip()
    stage.box.run("nsenter", "-t", init, "--all", "mount", "-t", "tmpfs", "tmpfs", stage.work)
    try:
        run = stage.submit(options=(*QUICK, "--nodes", "4"))
        assert stage.box.ended(job(run)) == "FAILED"
        assert f"error: node2: there is no run directory {run}" in stage.translution("logs", run)
        assert events(run) == []
    finally:
        stage.box.run("nsenter", "-t", init, "--all", "umount", stage.work)


@pytest.mark.soak
def test_a_run_of_two_nodes_goes_on_when_the_second_is_lost(stage: Stage):
    steps = ("train.steps=300", "train.checkpoint_every=1000", "train.log_every=5")
    one = stage.submit(*steps)
    assert stage.box.ended(job(one)) == "COMPLETED"
    run = stage.submit(*steps, "train.checkpoint_every=25", options=(*QUICK, "--nodes", "2"))
    stage.box.until(lambda: step(run) >= 30, 60, "it trains")
    stage.box.node("node2", "die")
    try:
        stage.box.until(lambda: starts(run) == 2, 150, "it starts again")
        assert "node2" not in read_notes(run)[-1]["nodes"]
        assert stage.box.ended(job(run)) == "COMPLETED"
        expected = [loss for _, loss in losses(one)]
        assert [loss for _, loss in losses(run)] == pytest.approx(expected, rel=1e-4)
    finally:
        stage.box.node("node2", "up")


def test_a_run_whose_rank_is_killed_starts_again_from_what_it_had_saved(stage: Stage):
    """The rank that lives on has lost another process, which is no mistake of the person's."""
    steps = ("train.steps=300", "train.checkpoint_every=20", "train.log_every=5")
    run = stage.submit(*steps, options=(*QUICK, "--nodes", "2"))
    stage.box.until(lambda: step(run) >= 30, 60, "it trains")
    os.kill(task_pid(run), signal.SIGKILL)
    stage.box.until(lambda: starts(run) == 2, 60, "it starts again")
    assert stage.box.ended(job(run)) == "COMPLETED"
    assert "refused" not in events(run)
    assert [number for number, _ in losses(run)] == list(range(1, 301))


def test_ranks_of_all_nodes_stop_at_one_step_for_a_signal_and_go_on(stage: Stage):
    steps = ("train.steps=300", "train.checkpoint_every=null", "train.log_every=5")
    run = stage.submit(*steps, options=(*QUICK, "--nodes", "2"))
    stage.box.until(lambda: step(run) >= 20, 60, "it trains")
    stage.box.run("scancel", "--signal=USR2", job(run))
    stage.box.until(lambda: starts(run) == 2, 60, "it starts again")
    assert stage.box.ended(job(run)) == "COMPLETED"
    assert events(run) == ["start", "stopped", "requeued", "start", "finished"]
    assert [number for number, _ in losses(run)] == list(range(1, 301))
