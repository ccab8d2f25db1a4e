"""`translution resume`."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launch.slurm.runs.job_record import read_record, write_record
from tests.launch.slurm.recorded import RecordedSlurm, make_run
from trainer.run_directory.awaited import is_awaited
from trainer.run_directory.checkpoints import checkpoints


@pytest.fixture
def run(
    config_file: Path,
    translution: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recorded: RecordedSlurm,
) -> Path:
    """A run that has trained its six steps, with checkpoints of steps 3 and 6, on a recorded cluster."""
    found = make_run(tmp_path / "runs" / "tiny-aaaa", "7", allocation={"gpus_per_node": None})
    assert translution("train", config_file, f"run_dir={found}").code == 0
    (found / "submitted.yaml").write_text((found / "config.yaml").read_text())
    (found / "evaluations.jsonl").write_text('{"step": 3}\n{"step": 6}\n')
    monkeypatch.chdir(tmp_path)
    recorded.says("scontrol", "PartitionName=main Default=YES TotalNodes=6 MaxTime=UNLIMITED\n")
    recorded.says("sbatch", "Submitted batch job 77\n")
    return found


def test_from_step_sets_newer_checkpoints_and_results_aside(run: Path, translution: Callable):
    outcome = translution("resume", "tiny", "train.lr=0.5", "--from-step", "3")
    assert outcome.code == 0, outcome.err
    assert [path.stem for path in checkpoints(run / "checkpoints")] == ["step-00000003"]
    assert [path.name for path in (run / "checkpoints").glob(".aside-*/*")] == ["step-00000006.pt"]
    assert not (run / "result.json").exists()
    assert [json.loads(line)["step"] for line in (run / "evaluations.jsonl").read_text().splitlines()] == [3]
    assert yaml.safe_load((run / "submitted.yaml").read_text())["train"]["lr"] == 0.5
    assert read_record(run).jobs == ["7", "77"]


def test_options_replace_those_of_the_submission(run: Path, translution: Callable):
    options = ["--qos", "best", "--account", "lab", "--mem-gb", "3", "--tasks-per-node", "2", "--nodes", "1"]
    assert translution("resume", "7", "train.steps=9", "train.batch=16", *options).code == 0
    allocation = read_record(run).allocation
    assert (allocation["qos"], allocation["account"], allocation["mem_gb"]) == ("best", "lab", 3)
    script = next((run / "slurm").glob("77_submission.sh")).read_text()
    assert "#SBATCH --qos=best" in script
    assert "#SBATCH --ntasks-per-node=2" in script


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from-step", "4"], "step 4: .*/checkpoints has no checkpoint of this step; it has 3, 6"),
        (["--from-step", "6"], "--from-step 6: train.steps=6 leaves nothing to train"),
        (["train.steps=4"], ": finished at step 6"),
        (["train.steps=9", "--tasks-per-node", "3"], "train.batch=8 is not divisible by"),
    ],
)
def test_what_cannot_be_resumed_is_refused_before_anything_changes(
    run: Path, translution: Callable, words: list, message: str
):
    before = (run / "slurm.json").read_text()
    outcome = translution("resume", "tiny", *words)
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert (run / "slurm.json").read_text() == before
    assert len(checkpoints(run / "checkpoints")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tasks-per-node", "4"],
            "does not fit into the 262 kB of a process .what Slurm says of the nodes.; .*give --force",
        ),
        (["--mem-gb", "0.00002", "--tasks-per-node", "2"], "the 10 kB of a process .mem_gb."),
        (
            ["--gpus-per-node", "1", "--device-memory-gb", "0.00001"],
            "the 10 kB of a process .device_memory_gb.",
        ),
    ],
)
def test_memory_is_checked_as_at_submission(
    run: Path, translution: Callable, recorded: RecordedSlurm, words: list, message: str
):
    recorded.says("sinfo", "main*|1|8|gpu:h100:2|(null)\n")
    words = ["train.steps=8", "train.batch=8", *words]
    outcome = translution("resume", "tiny", *words)
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert read_record(run).jobs == ["7"]
    forced = translution("resume", "tiny", *words, "--force")
    assert forced.code == 0, forced.err
    assert "; does not fit into the " in forced.out


def test_memory_that_is_not_known_is_told_and_a_data_path_is_checked(
    run: Path, translution: Callable, recorded: RecordedSlurm
):
    missing = translution("resume", "tiny", "train.steps=8", "data.path=nowhere")
    assert "data.path=nowhere: no such file or folder on this machine; give --force" in missing.err
    recorded.says("sinfo", "main*|8000|8|gpu:big:2|(null)\n")
    outcome = translution("resume", "tiny", "train.steps=8", "--gpus-per-node", "2")
    assert outcome.code == 0, outcome.err
    assert "not compared: the memory of a process is not known" in outcome.out


def test_fewer_steps_than_the_checkpoint_has_are_refused(run: Path, translution: Callable):
    (run / "result.json").unlink()
    line = "train.steps=4: .*step 6 already; give train.steps=6 or more"
    for command in (["resume", "tiny", "train.steps=4"], ["train", "--resume", run, "train.steps=4"]):
        outcome = translution(*command)
        assert outcome.code == 2
        assert re.search(line, outcome.err), outcome.err


def test_nothing_has_changed_where_sbatch_refuses(run: Path, translution: Callable, recorded: RecordedSlurm):
    recorded.says("sbatch", "sbatch: error: Invalid account\n", code=1)
    before, record = files(run), read_record(run)
    outcome = translution("resume", "tiny", "train.lr=0.5", "--from-step", "3", "--account", "no")
    assert outcome.err == "error: sbatch: Invalid account\n"
    assert (files(run), read_record(run)) == (before, record)


def files(run: Path) -> dict[Path, bytes]:
    found = [path for path in run.rglob("*") if path.is_file() and path.name != "slurm.json"]
    return {path: path.read_bytes() for path in found}


def test_an_evaluation_that_has_ended_is_submitted_again(
    run: Path, translution: Callable, recorded: RecordedSlurm
):
    record = read_record(run)
    write_record(run, dataclasses.replace(record, evaluate_every=3, evaluation_jobs=["8"]))
    recorded.says("squeue", "8|RUNNING|node1|1:00|None\n")
    assert translution("resume", "tiny", "train.steps=9").code == 0
    assert read_record(run).evaluation_jobs == ["8"]
    recorded.says("squeue", "")
    recorded.says("sbatch", "Submitted batch job 78\n")
    assert translution("resume", "tiny", "train.steps=9").code == 0
    assert read_record(run).evaluation_jobs == ["8", "78"]
    assert is_awaited(run, 9)


def test_a_run_whose_job_lives_is_not_resumed(run: Path, translution: Callable, recorded: RecordedSlurm):
    recorded.says("squeue", "7|PENDING||1:00|Priority\n")
    assert "job 7 is alive; nothing to resume" in translution("resume", "tiny").err
