"""The commands: what users type, and one line for each mistake."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.saved import remove_checkpoints
from trainer.__main__ import main as python_m_trainer
from trainer.data.digits.idx import to_idx
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory


def test_help_needs_no_heavy_import():
    code = "import sys, launch.cli; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_evaluate_prints_what_training_printed(config_file: Path, tmp_path: Path, translution: Callable):
    run = tmp_path / "run"
    trained = translution("train", config_file, f"run_dir={run}")
    evaluated = translution("evaluate", run)
    assert evaluated.code == 0, evaluated.err
    assert evaluated.out.strip().split("\n")[-3:] == trained.out.strip().split("\n")[-3:]
    assert "Static→Dynamic" in evaluated.out


def test_python_m_trainer_is_the_same_run(config_file: Path, tmp_path: Path, translution: Callable):
    """Also with the argument that DeepSpeed's launcher adds, and with options between the overrides."""
    runs = [tmp_path / "one", tmp_path / "two"]
    assert translution("train", config_file, f"run_dir={runs[0]}").code == 0
    words = ["--local_rank=0", str(config_file), f"run_dir={runs[1]}", "--debug", "seed=0"]
    assert python_m_trainer(words) == 0
    losses = [[r.get("loss") for r in RunDirectory(run).read_metrics()] for run in runs]
    assert losses[0] == losses[1]


def test_plain_lines_show_loss_rate_speed_and_time_left(
    config_file: Path, tmp_path: Path, translution: Callable
):
    out = translution("train", config_file, f"run_dir={tmp_path / 'run'}").out
    line = r"step 4/6  loss \d\.\d+  lr \d\.\d+e-\d+  [\d,]+ images/s  \d+% of the peak  \d:\d\d:\d\d left"
    assert re.search(line, out)


def test_ctrl_c_saves_and_prints_how_to_resume(config_file: Path, tmp_path: Path, translution: Callable):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    many = ("train.steps=200", "train.checkpoint_every=null", "train.log_every=1")
    assert translution("train", config_file, f"run_dir={whole}", *many).code == 0
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: equal to the last digit
    command = [sys.executable, "-m", "trainer", str(config_file), f"run_dir={cut}", *many]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            if "step 5/200" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130, err
    assert f"resume with: translution train --resume {cut}" in out
    assert "Traceback" not in err
    assert len(checkpoints(cut / "checkpoints")) == 1
    assert not (cut / "result.json").exists()

    resumed = translution("train", "--resume", cut)
    assert resumed.code == 0
    assert re.search(r"^going on from step [5-9]|^going on from step \d\d+", resumed.out, re.MULTILINE)
    losses = [[r.get("loss") for r in RunDirectory(run).read_metrics()] for run in (whole, cut)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.stepz=3"], "unknown key train.stepz=3: did you mean train.steps?"),
        (["train.accumulate=3"], "train.batch=8 is not divisible by train.accumulate=3 × 1 data ranks"),
        (["train.steps=many"], "train.steps=many: should be a valid integer"),
        (["model.patch_size=27"], "model.image_size 84 is not a multiple of patch_size 27"),
        (["model.mixer.heads=0"], "model.mixer.heads=0"),
        (["model.image_size=96", "model.patch_size=12"], "model.image_size=96: "),
        (["data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["data.path=."], "train-images-idx3-ubyte (or train-images-idx3-ubyte.gz) is missing"),
        (["run_dir=/proc/none/run"], "run_dir=/proc/none/run: cannot be created"),
        (["--resume", "."], "not a run directory: it has no config.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["translution", "python -m trainer"])
def test_a_mistake_is_one_line_and_exit_code_2(
    config_file: Path,
    tmp_path: Path,
    translution: Callable,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: list[str],
    line: str,
):
    monkeypatch.chdir(tmp_path)
    if command == "translution":
        code, out, err = translution("train", config_file, *words)
    else:
        code = python_m_trainer([str(config_file), *words])
        out, err = capsys.readouterr()
    assert code == 2
    assert line in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""  # nothing had started
    assert not (tmp_path / "runs").exists()


def test_the_process_exits_with_2_and_no_traceback_unless_debugging(config_file: Path):
    command = [sys.executable, "-m", "launch.cli", "train", str(config_file), "seed=x"]
    command[1:3] = ["-c", "from launch.cli import main; main()"]
    for extra, traceback in ([], False), (["--debug"], True):
        done = subprocess.run([*command, *extra], capture_output=True, text=True)
        assert done.returncode == 2
        assert "error: seed=x: should be a valid integer" in done.stderr
        assert ("Traceback" in done.stderr) is traceback


@pytest.mark.parametrize("damage", ["truncated", "wrong magic number"])
def test_a_damaged_idx_file_stops_before_training(
    config_file: Path, tmp_path: Path, translution: Callable, damage: str
):
    images = to_idx(np.zeros((4, 28, 28), np.uint8))
    content = images[:-9] if damage == "truncated" else b"\0\0\x09\3" + images[4:]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    run = tmp_path / "run"
    outcome = translution("train", config_file, f"data.path={tmp_path}", f"run_dir={run}")
    assert outcome.code == 2
    assert f"{path}: {damage}" in outcome.err
    assert not run.exists()


def test_resuming_without_a_checkpoint_is_refused(config_file: Path, tmp_path: Path, translution: Callable):
    run = tmp_path / "run"
    assert translution("train", config_file, f"run_dir={run}").code == 0
    remove_checkpoints(run)
    for command in (["train", "--resume", run], ["evaluate", run]):
        outcome = translution(*command)
        assert outcome.code == 2
        assert f"{run}: holds no checkpoint" in outcome.err


def test_resuming_with_another_net_is_refused(config_file: Path, tmp_path: Path, translution: Callable):
    run = tmp_path / "run"
    assert translution("train", config_file, f"run_dir={run}").code == 0
    outcome = translution("train", "--resume", run, "model.width=16")
    assert outcome.code == 2
    assert "does not fit this config's net" in outcome.err
    assert "width: 8" in (run / "config.yaml").read_text()  # the run is as it was


def test_a_second_run_in_one_directory_is_refused(config_file: Path, tmp_path: Path, translution: Callable):
    words = ("train", config_file, f"run_dir={tmp_path / 'run'}")
    assert translution(*words).code == 0
    outcome = translution(*words)
    assert outcome.code == 2
    assert "already holds a run" in outcome.err


def test_the_version_is_shown_without_heavy_imports(translution: Callable):
    from parallel.code_folder import code_version

    assert translution("--version").out == f"translution {code_version()}\n"


def test_the_shell_completes_commands_and_options():
    words = {"COMP_WORDS": "translution gen", "COMP_CWORD": "1", "_TRANSLUTION_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv[0] = 'translution'; from launch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True
    )
    assert done.stdout.split() == ["generate"]
