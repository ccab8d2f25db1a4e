"""Whole runs on several processes: the losses of one process, resumed on any mesh, refused in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.ranks import losses, train_on
from tests.saved import flip_byte, newest, remove_checkpoints
from tests.tiny import TINY
from trainer.__main__ import main
from trainer.faults.fault_log import read_faults
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory

# With two data ranks and 8 at a time one rank has 31 samples, the other 30.
UNEVEN = TINY | {
    "data": TINY["data"] | {"test_samples": 61},
    "train": TINY["train"] | {"keep_checkpoints": 9, "evaluate_batch": 8},
}
DEBUG = ["configs/debug.yaml", "study=null", "device=cpu", "data.test_samples=20", "train.log_every=1"]
MESH = ["parallel.offset=2", "parallel.engine=deepspeed", "parallel.zero=3"]
SINGLE = ["parallel.offset=1", "parallel.engine=torch", "parallel.zero=0"]

# Overrides, and what the error line says.
BAD = {
    "world that does not factor": (
        ["parallel.offset=3"],
        "parallel.offset=3 × parallel.tensor=1 = 3 does not divide the 2 processes",
    ),
    "data that is not the rest": (["parallel.data=3"], "data=2 or auto fits"),
    "offset degree": (
        ["model.patch_size=84", "parallel.offset=2"],
        "parallel.offset=2 is more than the 1 residue classes of a grid of (1, 1)",
    ),
    "heads": (
        ["model.mixer.heads=3", "parallel.tensor=2"],
        "heads=3 is not divisible by parallel.tensor=2",
    ),
    "mlp": (["model.mlp=17", "parallel.offset=2"], "mlp=17 is not divisible by offset × tensor = 2 ranks"),
    "batch": (["train.batch=7"], "train.batch=7 is not divisible by train.accumulate=1 × 2 data ranks"),
    "zero without deepspeed": (["parallel.zero=3"], "parallel.zero=3: the torch engine has no ZeRO"),
    "bf16 at zero 0": (
        ["precision=bf16", "parallel.engine=deepspeed"],
        "precision=bf16 with parallel.zero=0",
    ),
    "ranks disagree": (
        ["train.lr=0.1{rank}"],
        "ranks disagree on the config: train.lr is 0.11 on rank 1, 0.1 on rank 0",
    ),
    "ranks disagree on the mesh": (
        ["parallel.tensor={rank}"],
        "parallel.tensor=0",
    ),
    "one rank's config is wrong": (
        ["train.batch=8{rank}", "parallel.offset=1"],
        "rank 1: train.batch=81 is not",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    (path / "tiny.yaml").write_text(yaml.safe_dump(UNEVEN))
    return path


@pytest.fixture(scope="module")
def single(folder):
    """Runs of a single process: the tiny net, and five steps of the debug config."""
    assert main([str(folder / "tiny.yaml"), f"run_dir={folder / 'single'}"]) == 0
    assert main([*DEBUG, "train.steps=5", f"run_dir={folder / 'debug'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def two(single):
    """How the runs on two processes ended, by name; their directories are in the folder."""
    tiny = str(single / "tiny.yaml")
    runs = {name: [tiny, f"run_dir={single / 'bad'}", *overrides] for name, (overrides, _) in BAD.items()}
    runs["debug"] = [*DEBUG, "train.steps=5", "parallel.offset=2", f"run_dir={single / 'debug-2'}"]
    return dict(zip(runs, train_on(2, list(runs.values()), seconds=100), strict=True))


@pytest.fixture(scope="module")
def four(single):
    """A run under offset 2 × data 2 × ZeRO-3, and one that resumes a single process's run there."""
    cut_back(single / "single", single / "resumed-on-four")
    runs = [
        [*DEBUG, "train.steps=5", "parallel.offset=2", f"run_dir={single / 'debug-4'}"],
        [str(single / "tiny.yaml"), f"run_dir={single / 'four'}", *MESH],
        ["--resume", str(single / "resumed-on-four"), *MESH],
    ]
    for ended in train_on(4, runs, seconds=100):
        assert ended.codes == [0] * 4, ended.errors
    return single


def cut_back(run, to):
    """Copies a run as it was at its checkpoint of step 3."""
    shutil.copytree(run, to)
    remove_checkpoints(to, after=3)


def evaluation(run):
    return json.loads((run / "result.json").read_text())["evaluation"]


def part_norms(run):
    """The gradient norms of the parts of the net, of the steps that have them."""
    return [record["grad_norms"] for record in RunDirectory(run).read_metrics() if "grad_norms" in record]


def test_gradient_norms_of_parts_are_those_of_one_process_and_make_up_the_norm(two, four):
    assert two["debug"].codes == [0, 0]
    alone = part_norms(four / "debug")
    assert len(alone) == 4  # of five steps: in one the bytes sent are counted, and reports send nothing
    for name in ("debug-2", "debug-4"):
        for own, expected in zip(part_norms(four / name), alone, strict=True):
            assert own == pytest.approx(expected, rel=1e-3)
    steps = [r for r in RunDirectory(four / "debug-2").read_metrics() if "grad_norms" in r]
    for step in steps:
        assert sum(norm**2 for norm in step["grad_norms"].values()) ** 0.5 == pytest.approx(step["grad_norm"])


@pytest.mark.parametrize("name", BAD)
def test_bad_input_stops_all_processes_with_one_line_and_no_run_directory(two, single, name):
    ended = two[name]
    assert ended.codes == [2, 2], ended.errors
    assert BAD[name][1] in ended.errors[0]
    assert "".join(ended.errors).count("\n") == 1
    assert not (single / "bad").exists()


def test_the_debug_config_on_two_processes_has_the_losses_of_one(two, single):
    assert two["debug"].codes == [0, 0], two["debug"].errors
    assert losses(single / "debug-2") == pytest.approx(losses(single / "debug"), rel=1e-4)
    assert len(losses(single / "debug")) == 5


def test_the_debug_config_on_four_processes_has_the_losses_of_one(four):
    assert losses(four / "debug-4") == pytest.approx(losses(four / "debug"), rel=1e-4)


def test_torchrun_starts_the_processes_too(single):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "trainer",
    ]
    arguments = [single / "tiny.yaml", f"run_dir={single / 'torchrun'}", "parallel.offset=2"]
    subprocess.run([*command, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=100)
    assert losses(single / "torchrun") == pytest.approx(losses(single / "single"), rel=1e-4)


def test_an_uneven_evaluation_over_two_data_ranks_has_the_metrics_of_one_process(four):
    expected = evaluation(four / "single")
    assert {name: pytest.approx(measures, rel=1e-4) for name, measures in expected.items()} == evaluation(
        four / "four"
    )


def test_one_process_resumes_from_a_checkpoint_of_a_mesh_under_zero_3(four):
    run = four / "resumed-on-one"
    cut_back(four / "four", run)
    assert main(["--resume", str(run), *SINGLE]) == 0
    assert losses(run) == pytest.approx(losses(four / "single"), rel=1e-4)


def test_a_mesh_under_zero_3_resumes_from_a_checkpoint_of_one_process(four):
    assert losses(four / "resumed-on-four") == pytest.approx(losses(four / "single"), rel=1e-4)
    assert losses(four / "four") == pytest.approx(losses(four / "single"), rel=1e-4)


def test_two_processes_evaluate_as_one_without_reading_moments(four, translution):
    run = four / "weights-only"
    shutil.copytree(four / "four", run)
    for file in (run / "checkpoints").glob("step-*/rank-*.exp_avg*"):
        file.unlink()
    alone = translution("evaluate", run)
    assert alone.code == 0, alone.err
    words = ["--processes", "2", "parallel.offset=1", "parallel.tensor=2"]
    command = [sys.executable, "-c", "from launch.cli import main; main()", "evaluate", str(run), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.out
    assert "test accuracy" in done.stdout


@pytest.mark.soak
def test_four_ranks_go_on_from_the_checkpoint_before_a_damaged_one(four):
    """And where that is damaged too, one line of one rank says so."""
    run, end = four / "damaged", "rank-0001.weight.safetensors"
    shutil.copytree(four / "four", run)
    flip_byte(newest(run) / end, -3)
    (ended,) = train_on(4, [["--resume", str(run), *MESH]], seconds=100)
    assert ended.codes == [0] * 4, ended.errors
    assert losses(run) == losses(four / "four")
    assert [fault["fault"] for fault in read_faults(run)] == ["damaged checkpoint"]

    for path in checkpoints(run / "checkpoints"):
        flip_byte(path / end, -3)
    (ended,) = train_on(4, [["--resume", str(run), *MESH]], seconds=100)
    assert ended.codes == [2] * 4
    assert f"step-00000003: damaged checkpoint ({end}: " in ended.errors[0]
    assert "".join(ended.errors).count("\n") == 1


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("processes", [2, 4])
def test_fifty_steps_of_the_debug_config_have_the_losses_of_one_process(tmp_path, processes):
    arguments = [*DEBUG, "train.steps=50"]
    assert main([*arguments, f"run_dir={tmp_path / 'one'}"]) == 0
    runs = [[*arguments, "parallel.offset=2", f"run_dir={tmp_path / 'several'}"]]
    (ended,) = train_on(processes, runs, seconds=1000)
    assert ended.codes == [0] * processes, ended.errors
    one, several = losses(tmp_path / "one"), losses(tmp_path / "several")
    print("worst relative difference", max(abs(a / b - 1) for a, b in zip(several, one, strict=True)))
    assert several == pytest.approx(one, rel=1e-4)
