"""Runs on a real Slurm: losses of an undisturbed run, whatever befalls the job.

Jobs wait more than they compute, so the stories of this file run side by side; each test reports one.
"""

import functools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from launch.slurm.runs.job_record import read_facts, read_notes
from tests.slurm.conftest import Box
from tests.slurm.slurm_stage import (
    LONG,
    QUICK,
    STEPS,
    WHOLE_NODE,
    Stage,
    events,
    hold,
    job,
    losses,
    signalled,
    starts,
    step,
    task_pid,
)
from trainer.run_directory.run_directory import RunDirectory

_STORIES: dict[str, Callable] = {}


def story(play: Callable[..., None]) -> Callable[..., None]:
    """Turn a story into a test: all stories selected begin together, each test waits for its own."""
    _STORIES[play.__name__] = play

    @pytest.mark.timeout(600)
    def test(together: dict[str, Future]) -> None:
        together[play.__name__].result()

    test.__name__, test.__doc__ = play.__name__, play.__doc__
    return test


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: dict) -> list[tuple[int, float]]:
    """The losses of the same config trained here, in one go."""
    from trainer.__main__ import main

    work = tmp_path_factory.mktemp("undisturbed")
    (work / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    words = [f"train.steps={STEPS}", "train.log_every=50", f"run_dir={work / 'run'}"]
    assert main([str(work / "tiny.yaml"), *words]) == 0
    return losses(work / "run")


@pytest.fixture(scope="session")
def together(
    request: pytest.FixtureRequest,
    box: Box,
    undisturbed: list,
    tiny: dict,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future]]:
    names = [item.name for item in request.session.items if item.name in _STORIES]
    with ThreadPoolExecutor(len(names)) as pool:
        futures = {}
        for name in names:
            stage = Stage(box, tmp_path_factory.mktemp("story"), tiny)
            play = functools.partial(_STORIES[name], stage)
            takes_losses = "undisturbed" in _STORIES[name].__code__.co_varnames
            futures[name] = pool.submit(play, undisturbed) if takes_losses else pool.submit(play)
        yield futures
        box.run("scancel", "--user=root", check=False)


@story
def test_a_run_that_meets_its_time_limit_goes_on_by_itself(stage: Stage, undisturbed: list) -> None:
    run = stage.submit(*LONG, options=("--time", "1", "--signal-delay", "30", *hold(50)))

    def warned() -> bool:  # and requeued; the process halts at step 50 to wait for the warning
        with suppress(AssertionError, ProcessLookupError):
            if starts(run) == 1 and signalled(pid := task_pid(run)):
                os.kill(pid, signal.SIGCONT)
        return starts(run) > 1

    stage.box.until(warned, 200, "Slurm warns of the time limit")
    assert stage.box.ended(job(run)) == "COMPLETED"
    # Slurm may warn a short job's next starts as soon as they begin: then it is requeued again.
    assert events(run) == [*("start", "stopped", "requeued") * (starts(run) - 1), "start", "finished"]
    assert starts(run) > 1
    assert losses(run) == undisturbed


@story
def test_a_run_goes_on_elsewhere_when_its_node_is_lost_and_the_old_process_writes_nothing(
    stage: Stage, undisturbed: list
) -> None:
    box, run = stage.box, stage.submit(*LONG, options=(*QUICK, *WHOLE_NODE, *hold(50)))
    old = stage.held(run, 50)  # or it would finish before Slurm misses the node
    lost = read_notes(run)[-1]["nodes"]
    box.node(lost, "unplug")
    try:
        box.until(lambda: starts(run) == 2, 100, "it starts elsewhere")
        assert read_notes(run)[-1]["nodes"] != lost
        box.until(lambda: step(run) > 60, 60, "it trains elsewhere")
        os.kill(old, signal.SIGCONT)
        assert box.ended(job(run)) == "COMPLETED"
        assert losses(run) == undisturbed
        log = run / "slurm" / f"{job(run)}_0_log.out"
        box.until(lambda: "a newer start of this run" in log.read_text(), 20, "the old one is kept out")
    finally:
        box.node(lost, "plug")


@story
def test_a_run_preempted_twice_goes_on_by_itself(stage: Stage, undisturbed: list) -> None:
    run = stage.submit(*LONG, options=(*QUICK, *WHOLE_NODE, *hold(50, 100)))
    for times, number in ((1, 50), (2, 100)):
        pid = stage.held(run, number)
        node = read_notes(run)[-1]["nodes"]
        words = ("-p", "urgent", "-w", node, "-n1", "-c8", "-t1", "-o/dev/null", "--wrap", "sleep 1")
        stage.box.run("sbatch", *words)
        stage.let_go(pid, 30)
        stage.box.until(lambda times=times: starts(run) > times, 60, "it starts again")
    assert stage.box.ended(job(run)) == "COMPLETED"
    assert events(run) == [*("start", "stopped", "requeued") * 2, "start", "finished"]
    assert losses(run) == undisturbed
    assert "saved in" in (run / "slurm" / f"{job(run)}_0_log.out").read_text()


@story
def test_cancel_saves_and_resume_goes_on(stage: Stage, undisturbed: list) -> None:
    run = stage.submit(*LONG, "train.checkpoint_every=null", options=(*QUICK, *hold(50)))
    pid = stage.held(run, 50)
    assert "RUNNING" in stage.translution("jobs")
    assert "cancelled job" in stage.translution("cancel", run)
    stage.let_go(pid, 10)
    assert stage.box.ended(job(run)) == "CANCELLED"
    assert events(run) == ["start", "stopped"]
    first = job(run)
    assert "nothing to cancel" in stage.translution("cancel", run, code=2)
    stage.translution("resume", run)
    assert job(run) != first
    os.kill(stage.held(run, 50), signal.SIGCONT)  # for Slurm it is a first start again
    assert stage.box.ended(job(run)) == "COMPLETED"
    assert losses(run) == undisturbed
    assert stage.translution("logs", run).count("run directory") == 2, "both jobs' output"


@story
def test_a_submitted_run_has_the_losses_of_a_local_one(stage: Stage, undisturbed: list) -> None:
    run = stage.submit(*LONG)
    shown = stage.translution("logs", run, "--follow")
    assert f"step {STEPS}/{STEPS}" in shown
    assert stage.box.ended(job(run)) == "COMPLETED"
    assert losses(run) == undisturbed
    assert events(run) == ["start", "finished"]
    row = rf"{job(run)}\s+COMPLETED\s.*{STEPS}/{STEPS}\s+\d\.\d+\s+0\s.*runs/{run.name}"
    assert re.search(row, stage.translution("jobs"))
    assert "no output of rank 1" in stage.translution("logs", run, "--rank", "1", code=2)
    assert "submitted before" in stage.translution("submit", "tiny.yaml", *LONG, *QUICK, code=2)
    assert "has finished" in stage.translution("resume", run, code=2)


@story
def test_a_sweep_runs_as_many_at_a_time_as_asked_and_none_twice(stage: Stage) -> None:
    words = ("--sweep", "train.lr=1e-3,2e-3", "--sweep", "seed=1,2", "--parallel", "2")
    out = stage.translution("submit", "tiny.yaml", *words, *QUICK)
    runs = sorted((stage.work / "runs").glob("tiny-lr*"))
    assert len(runs) == 4 == out.count("run directory")
    assert len({job(run).split("_")[0] for run in runs}) == 1
    again = stage.translution("submit", "tiny.yaml", "seed=2", "train.lr=0.002", *QUICK, code=2)
    assert "submitted before" in again
    more = stage.translution("submit", "tiny.yaml", "--sweep", "train.lr=1e-3,2e-3", "seed=1", *QUICK)
    assert len(re.findall("^submitted before", more, re.MULTILINE)) == 2
    for run in runs:
        assert stage.box.ended(job(run)) == "COMPLETED"
    spans = [[note["time"] for note in read_notes(run)] for run in runs]
    for begun, _ in spans:
        assert sum(first <= begun < last for first, last in spans) <= 2


@story
def test_a_dependent_run_starts_after_its_own_and_never_after_a_failed_one(stage: Stage) -> None:
    first = stage.submit("seed=1", options=(*QUICK, *hold(2)))
    second = stage.submit("seed=2", options=(*QUICK, "--after", str(first)))
    waits = (*QUICK, "--after", str(first))
    bad = stage.submit("train.lr=1e38", "train.clip=null", "train.steps=20", options=waits)
    never = stage.submit("seed=3", options=(*QUICK, "--after", str(bad)))
    os.kill(stage.held(first, 2), signal.SIGCONT)
    assert stage.box.ended(job(second)) == "COMPLETED"
    assert read_notes(first)[-1]["time"] <= read_notes(second)[0]["time"]
    assert stage.box.ended(job(bad)) == "FAILED"
    assert events(bad) == ["start", "refused"]
    assert "not finite since step" in stage.translution("logs", bad)
    assert stage.box.ended(job(never), 30) == "CANCELLED"


@story
def test_checkpoints_are_evaluated_by_a_job_of_their_own(stage: Stage) -> None:
    run = stage.submit("train.steps=40", options=(*QUICK, "--evaluate-every", "20"))
    (evaluation,) = read_facts(run).evaluation_jobs
    stage.box.until((run / "evaluations.jsonl").exists, 60, "the first is evaluated")
    stage.box.run("scancel", "--signal=USR2", evaluation, check=False)  # as ahead of its time limit
    assert stage.box.ended(evaluation) == "COMPLETED"
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 40]
    result = RunDirectory(run).read_result()
    assert result
    assert records[-1]["evaluation"] == result["evaluation"]


@story
def test_a_job_is_requeued_no_more_often_than_allowed(stage: Stage) -> None:
    run = stage.submit(*LONG, options=(*QUICK, "--max-requeues", "0", *hold(20)))
    pid = stage.held(run, 20)
    stage.box.run("scancel", "--signal=USR2", job(run))
    stage.let_go(pid, 10)
    assert stage.box.ended(job(run)) == "FAILED", "a job that ends before its run must not look complete"
    assert events(run) == ["start", "stopped", "exhausted"]
    assert "max_requeues=0 are used up; translution resume" in stage.translution("logs", run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--partition", "gpu"), "partition=gpu: there is none; this cluster has main, urgent"),
        (("--nodes", "8"), "nodes=8: partition main has 4"),
        (("--time", "2", "--signal-delay", "120"), "time=2 min is too short to save"),
        (("--after", "runs/none"), "runs/none: was not submitted to Slurm"),
        (("--cpus-per-task", "9"), "sbatch: Requested node configuration is not available"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    box: Box, tmp_path: Path, tiny: dict, options: tuple, message: str
):
    stage = Stage(box, tmp_path, tiny)
    out = stage.translution("submit", "tiny.yaml", *options, code=2)
    assert out.startswith(f"error: {message}")
    assert len(out.splitlines()) == 1
    assert not list(stage.work.glob("runs/*/slurm.json"))
