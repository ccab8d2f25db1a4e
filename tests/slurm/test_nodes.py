"""Jobs of two nodes: the losses of one process, and restarts after a node or a rank is lost."""

import os
import signal

import pytest

from launch.slurm.runs.job_record import read_events
from tests.slurm.workspace import (
    OPTIONS,
    Workspace,
    concurrent,
    events,
    halt_after,
    job,
    losses,
)
from trainer.faults.fault_log import read_faults

TWO_NODES = (*OPTIONS, "--nodes", "2")


@concurrent
def test_two_nodes_of_two_ranks_with_offsets_and_zero_3_have_the_losses_of_one_process(
    workspace: Workspace,
) -> None:
    sharded = ("parallel.offset=2", "parallel.engine=deepspeed", "parallel.zero=3")
    options = (*TWO_NODES, "--constraint", "pair", "--gpus-per-node", "2")
    run = workspace.submit(*sharded, options=options)
    workspace.assert_completes(run)
    assert workspace.cluster.job_fields(job(run))["TresPerNode"] == "gres:gpu:2"
    assert read_events(run)[0]["nodes"] == "node[5-6]"
    assert losses(run) == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in workspace.tiny_losses]
    assert "global_rank=3(4)" in workspace.translution("logs", run, "--rank", "3", "--raw")


@concurrent
def test_a_node_without_the_run_directory_is_named_and_the_job_not_requeued(workspace: Workspace) -> None:
    with workspace.cluster.mounted("node6", "-t", "tmpfs", "tmpfs", workspace.folder):
        run = workspace.submit(options=(*TWO_NODES, "--constraint", "pair"))
        assert workspace.final_state(run) == "FAILED"
        assert f"error: node6: cannot see the run directory {run}" in workspace.translution("logs", run)
        assert events(run) == ["failed"]


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_run_of_two_nodes_resumes_after_losing_the_second(workspace: Workspace):
    steps = ("train.steps=300", "train.checkpoint_every=1000", "train.log_every=5")
    one = workspace.submit(*steps)
    workspace.assert_completes(one)
    run = workspace.submit(*steps, "train.checkpoint_every=25", options=TWO_NODES)
    workspace.wait_for_step(run, 30)
    with workspace.cluster.broken("node2", "die"):
        workspace.wait_for_starts(run, 2, seconds=150)
        assert "node2" not in read_events(run)[-1]["nodes"]
        workspace.assert_completes(run)
        assert losses(run) == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in losses(one)]


@concurrent
def test_a_run_whose_rank_is_killed_resumes_from_its_checkpoint(workspace: Workspace) -> None:
    """The other rank loses its peer, which is no mistake of the user's."""
    steps = ("train.steps=100", "train.checkpoint_every=20", "train.log_every=5")
    run = workspace.submit(*steps, options=(*TWO_NODES, *halt_after(30)))
    killed, other = workspace.wait_until_ranks_halted(run, 30, 2)
    os.kill(killed, signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    workspace.wait_for_starts(run, 2)
    workspace.assert_completes(run)
    assert "refused" not in events(run)
    assert [step for step, _ in losses(run)] == list(range(1, 101))


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_run_whose_rank_is_killed_before_its_first_checkpoint_starts_again(workspace: Workspace) -> None:
    steps = ("train.steps=100", "train.checkpoint_every=1000", "train.log_every=5")
    run = workspace.submit(*steps, options=(*TWO_NODES, *halt_after(30)))
    killed, other = workspace.wait_until_ranks_halted(run, 30, 2)
    os.kill(killed, signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    workspace.wait_for_starts(run, 2, seconds=150)
    workspace.assert_completes(run)
    assert [fault["fault"] for fault in read_faults(run)] == ["lost rank"]
    assert [step for step, _ in losses(run)] == list(range(1, 101))


@concurrent
def test_ranks_on_two_nodes_stop_at_the_same_step_at_a_signal_and_resume(workspace: Workspace) -> None:
    steps = ("train.steps=100", "train.checkpoint_every=null", "train.log_every=5")
    run = workspace.submit(*steps, options=(*TWO_NODES, *halt_after(20)))
    ranks = workspace.wait_until_ranks_halted(run, 20, 2)
    workspace.cluster.run("scancel", "--signal=USR2", job(run))
    for pid in ranks:
        workspace.continue_at_signal(pid, 10)
    workspace.wait_for_starts(run, 2)
    workspace.assert_completes(run)
    assert events(run) == ["start", "stopped", "requeued", "start", "finished"]
    assert [step for step, _ in losses(run)] == list(range(1, 101))
