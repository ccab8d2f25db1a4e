"""ImageNet from class folders to a trained net with the commands, and its configs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml

from models import build_model
from parallel.code_folder import CODE_FOLDER
from tests.saved import remove_checkpoints
from tests.trainer.data.images.image_folders import class_folders
from trainer.config.run import load_config
from trainer.data.images.prepare.prepare import prepare
from trainer.run_directory.run_directory import RunDirectory

CLASSES = 6
CONFIGS = CODE_FOLDER / "configs" / "imagenet"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and evaluation shards of the same classes."""
    root = tmp_path_factory.mktemp("imagenet")
    for name, images in (("train", 6), ("validation", 2)):
        source = class_folders(root / f"{name}-in", CLASSES, images)
        prepare(source, root / name, shard_mb=0.03, workers=0)
    return root / "train", root / "validation"


@pytest.fixture
def config_file(tmp_path: Path, sets: tuple[Path, Path]) -> Path:
    values = {
        "base": str(CONFIGS / "a56_attention.yaml"),
        "device": "cpu",
        "precision": "fp32",
        "model": {"image_size": 32, "patch_size": 16, "classes": CLASSES, "width": 8, "depth": 1, "mlp": 16}
        | {"mixer": {"kind": "translution", "heads": 2, "head_dim": 4}},
        "data": {"path": str(sets[0]), "evaluation_path": str(sets[1]), "workers": 1, "shuffle": 16},
        "train": {"steps": 6, "batch": 8, "log_every": 1, "checkpoint_every": 3, "evaluate_every": 3}
        | {"evaluate_batch": 5},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunDirectory(run).read_metrics() if "loss" in row]


def test_training_evaluates_top1_and_top5_and_resumes_with_the_same_images(
    config_file: Path, tmp_path: Path, translution: Callable
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = translution("train", config_file, f"run_dir={whole}")
    assert done.code == 0, done.err
    assert "test accuracy, top-1 / top-5, %, after 6 steps" in done.out
    assert "accuracy_top5 " in done.out
    assert translution("evaluate", whole).out.strip().split("\n")[-1] == done.out.strip().split("\n")[-1]
    copytree(whole, killed)
    remove_checkpoints(killed, after=3)  # as if killed after step 3
    assert translution("train", "--resume", killed, "data.workers=2").code == 0
    assert len(losses(killed)) == 6
    assert losses(killed) == losses(whole)
    steps = [row["step"] for row in RunDirectory(killed).read_metrics() if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_signal_to_all_processes_saves_and_the_resumed_run_has_the_same_losses(
    config_file: Path, tmp_path: Path, translution: Callable
):
    """Slurm signals the data workers too, whose death would end the training."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    overrides = ["train.steps=60", "train.checkpoint_every=null", "train.evaluate_every=null"]
    overrides += ["data.evaluation_path=null", "data.rand_augment=null", "data.workers=2"]
    assert translution("train", config_file, f"run_dir={whole}", *overrides).code == 0
    command = [sys.executable, "-m", "trainer", str(config_file), f"run_dir={cut}", *overrides]
    pipe, one_thread = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=one_thread
    ) as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            if "step 3/60" in line:
                break
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    assert "resume with: translution train --resume" in out
    assert 3 <= len(losses(cut)) < 60
    assert translution("train", "--resume", cut).code == 0
    assert losses(cut) == losses(whole)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.path=nowhere",
            "data.path=nowhere: no such folder; make it with: translution prepare",
        ),
        ("data.path=.", "data.path=.: has no manifest.json"),
        ("model.classes=5", "model.classes=5: data.path="),
        ("model.channels=1", "model.channels=1: data.kind=imagenet needs 3"),
        ("data.crop_scale=[0.5,2]", "data.crop_scale=[0.5, 2]: should be two shares of the area"),
        ("data.workers=99", "shards are too few for 1 data ranks × data.workers=99: at least 99"),
        ("data.rand_augment={magnitude: 40}", "data.rand_augment.magnitude=40: should be less than"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    config_file: Path,
    tmp_path: Path,
    translution: Callable,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    message: str,
):
    monkeypatch.chdir(tmp_path)
    done = translution("train", config_file, override)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_other_classes_for_evaluation_are_refused(config_file: Path, tmp_path: Path, translution: Callable):
    source = class_folders(tmp_path / "in", CLASSES + 1)
    (source / "n00000000" / "0.JPEG").unlink()
    (source / "n00000000").rmdir()
    prepare(source, tmp_path / "other", workers=0)
    done = translution("train", config_file, f"data.evaluation_path={tmp_path / 'other'}")
    assert done.code == 2
    assert "its classes are not those of" in done.err


def test_bench_data_prints_both_rates_and_their_ratio(sets: tuple[Path, Path], translution: Callable):
    options = ["--workers", 1, "--image-size", 32, "--seconds", 0.1]
    done = translution("bench", "data", sets[0], *options)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.strip().split("\n")[-3:]]
    assert [row[0] for row in rows] == ["from", "bare", "ratio"]
    shards, bare, ratio = (float(row[-1].replace(",", "")) for row in rows)
    assert shards > 0
    assert bare > 0
    assert ratio > 0
    assert translution("bench", "data", "nowhere").code == 2


# Self-attention, α and full; the paper's A/56 has 4.7, 5.3 and 38.5 M, its B/16 15.6 B.
MILLIONS = {
    "a56": (4.7, 5.3, 38.5),
    "a32": (3.5, 5.3, 116.9),
    "a16": (3.0, 10.7, 488.1),
    "b32": (88.2, 148.8, 3719.1),
    "b16": (86.5, 332.8, 15608.2),
}


@pytest.mark.parametrize("size", MILLIONS)
def test_every_config_is_a_net_of_the_paper_with_its_schedule(size: str):
    assert {path.stem.split("_")[0] for path in CONFIGS.glob("*_full.yaml")} == set(MILLIONS)
    for kind, millions in zip(("attention", "alpha", "full"), MILLIONS[size], strict=True):
        config = load_config(CONFIGS / f"{size}_{kind}.yaml", [])
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_model(config.model).parameters())
        assert round(parameters / 1e6, 1) == millions
        train = config.train
        assert (train.batch, train.lr, train.weight_decay, train.clip) == (256, 3e-4, 0.05, 1.0)
        assert train.steps == -(-300 * 1_281_167 // train.batch)
