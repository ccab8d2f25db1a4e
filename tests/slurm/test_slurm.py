"""Runs on a real Slurm: the losses of an uninterrupted run, whatever happens to the job."""

import json
import os
import re
import signal
from contextlib import suppress

import pytest

from launch.slurm.runs.job_record import read_events, read_record
from tests.slurm.workspace import (
    CHECKED,
    LONG,
    OPTIONS,
    STEPS,
    WHOLE_NODE,
    Workspace,
    concurrent,
    events,
    halt_after,
    has_signal,
    job,
    losses,
    task_pids,
)
from trainer.run_directory.run_directory import RunDirectory


@concurrent
def test_a_run_resumes_after_its_time_limit(workspace: Workspace) -> None:
    run = workspace.submit(
        *LONG, options=("--time", "1", "--signal-delay", "30", "--no-check", *halt_after(50))
    )

    def is_requeued() -> bool:  # the process halts at step 50, unless the signal comes earlier
        if (pids := task_pids(run)) and has_signal(pids[0]):
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGCONT)
        return "requeued" in events(run)

    workspace.cluster.until(is_requeued, 200, "Slurm signals the time limit")
    workspace.assert_completes(run)
    # Slurm may signal a short job's next starts at once, even before they train; they are requeued again.
    assert re.fullmatch("((start )?(stopped )?requeued )+start finished", " ".join(events(run)))
    assert "time limit; requeued (1 of " in workspace.translution("logs", run)
    assert losses(run) == workspace.long_losses


@concurrent
def test_a_run_resumes_elsewhere_after_a_lost_node_and_its_old_process_writes_nothing(
    workspace: Workspace,
) -> None:
    run = workspace.submit(*LONG, options=(*OPTIONS, *WHOLE_NODE, *halt_after(50)))
    old = workspace.wait_until_halted(run, 50)  # or it would finish before Slurm misses the node
    lost = read_events(run)[-1]["nodes"]
    with workspace.cluster.broken(lost, "unplug"):
        workspace.wait_for_starts(run, 2, seconds=100)
        assert read_events(run)[-1]["nodes"] != lost
        workspace.wait_for_step(run, 61)
        os.kill(old, signal.SIGCONT)
        workspace.assert_completes(run)
        assert losses(run) == workspace.long_losses
        log = run / "slurm" / f"{job(run)}_0_log.out"
        workspace.cluster.until(
            lambda: "a newer start of this run" in log.read_text(), 20, "the old process is kept out"
        )


@concurrent
def test_a_run_preempted_twice_resumes_each_time(workspace: Workspace) -> None:
    run = workspace.submit(*LONG, options=(*OPTIONS, *WHOLE_NODE, *halt_after(50, 100)))
    for start, step in ((1, 50), (2, 100)):
        pid = workspace.wait_until_halted(run, step)
        node = read_events(run)[-1]["nodes"]
        urgent = ("-p", "urgent", "-w", node, "-n1", "-c8", "-t1", "-o/dev/null", "--wrap", "sleep 0.1")
        workspace.cluster.run("sbatch", *urgent)
        workspace.continue_at_signal(pid, 30)
        workspace.wait_for_starts(run, start + 1)
    workspace.assert_completes(run)
    assert events(run) == [*("start", "stopped", "requeued") * 2, "start", "finished"]
    assert losses(run) == workspace.long_losses
    shown = workspace.translution("logs", run)
    assert "saved in" in shown
    assert shown.count("preempted; requeued") == 2
    assert shown.count("going on from step") == 2
    assert "srun" not in shown
    assert "submitit" not in shown


@concurrent
def test_cancel_saves_and_resume_continues(workspace: Workspace) -> None:
    run = workspace.submit(*LONG, "train.checkpoint_every=null", options=(*OPTIONS, *halt_after(50)))
    pid = workspace.wait_until_halted(run, 50)
    assert "RUNNING" in workspace.translution("jobs")
    assert f"its job {job(run)} is alive" in workspace.translution("train", "--resume", run, code=2)
    assert "cancelled job" in workspace.translution("cancel", run)
    workspace.continue_at_signal(pid, 10)
    assert workspace.final_state(run) == "CANCELLED"
    assert events(run) == ["start", "stopped"]
    first = job(run)
    assert "nothing to cancel" in workspace.translution("cancel", run, code=2)
    workspace.translution("resume", first)
    assert job(run) != first
    os.kill(workspace.wait_until_halted(run, 50), signal.SIGCONT)  # the new job's first start halts too
    workspace.assert_completes(run)
    assert losses(run) == workspace.long_losses
    shown = workspace.translution("logs", run)
    assert shown.count("run directory") == 2, "both jobs' output"
    assert re.search(r"going on from step \d+", shown)
    assert "resume with: translution train" not in shown


@concurrent
def test_a_submitted_run_has_the_losses_of_a_local_one(workspace: Workspace) -> None:
    run = workspace.submit(*LONG)
    shown = workspace.translution("logs", run, "--follow")
    assert f"step {STEPS}/{STEPS}" in shown
    workspace.assert_completes(run)
    assert losses(run) == workspace.long_losses
    assert events(run) == ["start", "finished"]
    row = rf"{job(run)}\s+COMPLETED\s+{STEPS}/{STEPS}\s+\d\.\d+\s.*{run.name}"
    assert re.search(row, workspace.translution("jobs"))
    assert "rank 1 has no output" in workspace.translution("logs", run, "--rank", "1", code=2)
    again = workspace.translution("submit", "tiny.yaml", *LONG, *OPTIONS, code=2)
    assert "already submitted" in again
    assert "finished at step" in workspace.translution("resume", run, code=2)


@concurrent
def test_a_sweep_runs_as_many_at_the_same_time_as_allowed_and_none_twice(workspace: Workspace) -> None:
    sweep = ("--sweep", "train.lr=1e-3,2e-3", "--sweep", "seed=1,2", "--parallel", "2")
    out = workspace.translution("submit", "tiny.yaml", *sweep, *OPTIONS)
    runs = sorted((workspace.folder / "runs").glob("tiny-lr*"))
    assert len(runs) == 4 == out.count("run directory")
    assert len({job(run).split("_")[0] for run in runs}) == 1
    again = workspace.translution("submit", "tiny.yaml", "seed=2", "train.lr=0.002", *OPTIONS, code=2)
    assert "already submitted" in again
    sweep = ("--sweep", "train.lr=1e-3,2e-3", "seed=1")
    again = workspace.translution("submit", "tiny.yaml", *sweep, *OPTIONS)
    assert len(re.findall("^already submitted", again, re.MULTILINE)) == 2
    for run in runs:
        workspace.assert_completes(run)
    assert len(list((workspace.folder / "runs").glob("tiny-sweep-*/results.md"))) == 1
    spans = [[event["time"] for event in read_events(run)] for run in runs]
    for started, _ in spans:
        assert sum(first <= started < last for first, last in spans) <= 2


@concurrent
def test_a_dependent_run_starts_after_a_finished_run_and_never_after_a_failed_one(
    workspace: Workspace,
) -> None:
    first = workspace.submit("seed=1", options=(*OPTIONS, *halt_after(2)))
    after_first = (*OPTIONS, "--after", str(first))
    second = workspace.submit("seed=2", options=after_first)
    bad = workspace.submit("train.lr=1e38", "train.clip=null", "train.steps=20", options=after_first)
    never = workspace.submit("seed=3", options=(*OPTIONS, "--after", str(bad)))
    os.kill(workspace.wait_until_halted(first, 2), signal.SIGCONT)
    workspace.assert_completes(second)
    assert read_events(first)[-1]["time"] <= read_events(second)[0]["time"]
    assert workspace.final_state(bad) == "FAILED"
    assert events(bad) == ["start", "refused", "failed"]
    assert re.search(r"FAILED .*not finite since step", workspace.translution("jobs", "--state", "failed"))
    assert "not finite since step" in workspace.translution("logs", bad)
    assert workspace.final_state(never) == "CANCELLED"


@concurrent
def test_a_separate_job_evaluates_the_checkpoints(workspace: Workspace) -> None:
    """Those that it has not come to yet are kept: one is, and five are saved before it starts."""
    options = (*OPTIONS, "--evaluate-every", "100", *halt_after(120))
    run = workspace.submit(f"train.steps={STEPS}", options=options)
    (evaluation,) = read_record(run).evaluation_jobs
    pid = workspace.wait_until_halted(run, 120)
    records = run / "evaluations.jsonl"
    workspace.cluster.until(
        lambda: records.exists() and records.read_text(), 100, "the first checkpoint is evaluated"
    )
    workspace.cluster.run("scancel", "--signal=USR2", evaluation)  # as before a time limit
    workspace.cluster.until(
        lambda: workspace.cluster.job_fields(evaluation).get("Restarts") == "1", 30, "the job is requeued"
    )
    os.kill(pid, signal.SIGCONT)
    state = workspace.cluster.final_state(evaluation)
    assert state == "COMPLETED", (run / "slurm" / f"{evaluation}_0_log.out").read_text()
    evaluations = [json.loads(line) for line in records.read_text().splitlines()]
    assert [each["step"] for each in evaluations] == [100, 200]
    result = RunDirectory(run).read_result()
    assert result
    assert evaluations[-1]["evaluation"] == result["evaluation"]


@concurrent
def test_a_job_that_asked_for_gpus_and_has_none_fails_at_once_and_names_the_host(
    workspace: Workspace,
) -> None:
    """Whether or not the hosts are checked before; and a setup command that ends the job says so."""
    gpus = ("--gpus-per-node", "1")
    checked = workspace.submit("device=auto", "seed=1", options=(*CHECKED, *gpus))
    unchecked = workspace.submit("device=auto", "seed=2", options=(*OPTIONS, *gpus))
    ended = workspace.submit("seed=3", options=(*OPTIONS, "--setup", "exit 3"))
    for run in (checked, unchecked, ended):
        assert workspace.final_state(run) == "FAILED"
        assert events(run)[-1] == "failed"
    assert re.match(r"node\d: torch sees 0 of 1 GPUs", read_events(checked)[-1]["cause"])
    assert re.match(
        r"node\d: gpus_per_node=1, but torch .* sees no CUDA", read_events(unchecked)[-1]["cause"]
    )
    assert "a setup command ended the job with exit code 3: exit 3" in workspace.translution("logs", ended)


@concurrent
def test_a_job_is_requeued_no_more_often_than_allowed(workspace: Workspace) -> None:
    run = workspace.submit(*LONG, options=(*OPTIONS, "--max-requeues", "0", *halt_after(20)))
    pid = workspace.wait_until_halted(run, 20)
    workspace.cluster.run("scancel", "--signal=USR2", job(run))
    workspace.continue_at_signal(pid, 10)
    assert workspace.final_state(run) == "FAILED", "a job that ends before its run must not look complete"
    assert events(run) == ["start", "stopped", "exhausted"]
    assert "max_requeues=0 reached; to resume: translution resume" in workspace.translution("logs", run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--partition", "gpu"), "partition=gpu: does not exist; this cluster has main, urgent"),
        (("--nodes", "8"), "nodes=8: partition main has 6"),
        (("--time", "2", "--signal-delay", "120"), "time=2 min is too short: "),
        (("--after", "runs/none"), "runs/none: no run in runs has this directory, name or job"),
        (
            ("--cpus-per-task", "9"),
            "--cpus-per-task 9: sbatch: Requested node ",
        ),
        (("--mem-gb", "9"), "--mem-gb 9: sbatch: "),
        (("--constraint", "none"), "--constraint none: sbatch: Invalid feature specification"),
    ],
)
def test_a_job_that_cannot_run_is_refused_in_one_line(workspace: Workspace, options: tuple, message: str):
    out = workspace.translution("submit", "tiny.yaml", *options, code=2)
    assert out.startswith(f"error: {message}")
    assert len(out.splitlines()) == 1
    assert not list(workspace.folder.glob("runs/*"))
