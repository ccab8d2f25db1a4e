"""Training: repeatable, resumable to the last digit, and what it writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.saved import newest, remove_checkpoints, saved_state
from trainer.config.run import load_config
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory


def losses(run: Path) -> list[tuple[int, int, float, float, float]]:
    keys = ("step", "samples", "loss", "grad_norm", "lr")
    records = RunDirectory(run).read_metrics()
    return [tuple(record[key] for key in keys) for record in records if "loss" in record]  # pyright: ignore


def evaluations(run: Path) -> list[dict]:
    return [record for record in RunDirectory(run).read_metrics() if "evaluation" in record]


@pytest.fixture
def train(config_file: Path, tmp_path: Path, translution: Callable) -> Callable[..., Path]:
    def run(name: str, *overrides: str) -> Path:
        path = tmp_path / name
        outcome = translution("train", config_file, f"run_dir={path}", *overrides)
        assert outcome.code == 0, outcome.err
        return path

    return run


def test_two_runs_of_one_config_write_the_same_losses(train: Callable):
    one, two = losses(train("one")), losses(train("two"))
    assert [record[0] for record in one] == [1, 2, 3, 4, 5, 6]
    assert [record[1] for record in one] == [8, 16, 24, 32, 40, 48]
    assert one == two
    assert losses(train("other", "seed=1")) != one


@pytest.mark.parametrize("lost", [0, 1])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    train: Callable, translution: Callable, lost: int
):
    """With dropout, an evaluation in between, and steps lost after the checkpoint."""
    every = ("train.steps=8", "train.evaluate_every=2", "train.checkpoint_every=2")
    uninterrupted = train("uninterrupted", *every)
    resumed = train("resumed", *every)
    # Restore what a run killed after step 5 leaves: a checkpoint of step 4 or 2.
    remove_checkpoints(resumed)
    (resumed / "result.json").unlink()
    earlier = train("earlier", *every, "train.keep_checkpoints=9")
    source = checkpoints(earlier / "checkpoints")[1 - lost]
    source.rename(resumed / "checkpoints" / source.name)
    lines = (resumed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (resumed / "metrics.jsonl").write_text("".join(lines[:7]) + lines[7][:20])

    outcome = translution("train", "--resume", resumed)
    assert outcome.code == 0, outcome.err
    assert losses(resumed) == losses(uninterrupted)
    assert evaluations(resumed) == evaluations(uninterrupted)
    net = load_config(resumed / "config.yaml", []).model
    states = [saved_state(newest(run), net) for run in (resumed, uninterrupted)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_finished_run_can_be_resumed_with_more_steps(train: Callable, translution: Callable):
    run = train("run")
    outcome = translution("train", "--resume", run, "train.steps=8")
    assert outcome.code == 0, outcome.err
    assert [record[0] for record in losses(run)] == list(range(1, 9))
    assert RunDirectory(run).read_result()["step"] == 8  # pyright: ignore
    assert "steps: 8" in (run / "config.yaml").read_text()


def test_accumulation_changes_no_loss(train: Callable):
    still = "model.dropout=0"
    whole, parts = train("whole", still), train("parts", still, "train.accumulate=4")
    for one, other in zip(losses(whole), losses(parts), strict=True):
        assert other[2:4] == pytest.approx(one[2:4], rel=1e-3)


def test_a_run_directory_holds_the_whole_run(train: Callable):
    run = train("run", "train.evaluate_every=4")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "version.json",
        "start_token",
        "metrics.jsonl",
        "saves.jsonl",
        "starts.jsonl",
        "tensorboard",
        "checkpoints",
        "result.json",
    }
    assert [path.name for path in checkpoints(run / "checkpoints")] == [
        "step-00000003",
        "step-00000006",
    ]
    assert [record["step"] for record in evaluations(run)] == [4, 6]
    result = json.loads((run / "result.json").read_text())
    assert result["evaluation"] == evaluations(run)[-1]["evaluation"]
    assert set(result["evaluation"]) == {"static", "dynamic"}


def test_tensorboard_events_hold_the_logged_scalars(train: Callable):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("run")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    due = {2, 4, 6, 3}  # every second step, and the checkpoint's
    expected = {step: loss for step, _, loss, *_ in losses(run) if step in due}
    assert logged == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in events.Scalars("dynamic/accuracy")] == [6]


def test_the_net_learns(train: Callable):
    overrides = ("train.steps=150", "train.batch=32", "train.log_every=150", "train.checkpoint_every=null")
    run = train("run", *overrides, "model.width=16", "model.dropout=0", "data.test_samples=300")
    assert RunDirectory(run).read_result()["evaluation"]["static"]["accuracy"] > 30  # pyright: ignore


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(
    config_file: Path, tmp_path: Path, translution: Callable
):
    run = tmp_path / "run"
    overrides = ("train.lr=1e38", "train.clip=null", "train.steps=20")
    outcome = translution("train", config_file, f"run_dir={run}", *overrides)
    assert outcome.code == 2
    assert "not finite since step" in outcome.err
    assert "train.lr=1e+38" in outcome.err
    assert not checkpoints(run / "checkpoints")


def test_running_statistics_are_saved_resumed_and_exported(tmp_path: Path, translution: Callable):
    """A net with batch norms: after a stop it goes on as if there had been none."""
    config = ["configs/imagenet/xcit_t12.yaml", "data={kind: synthetic, test_samples: 8}", "device=cpu"]
    small = "{kind: xca, heads: 2}"
    config += ["model.image_size=32", "model.classes=10", "model.width=16", "model.mlp=16", "model.depth=1"]
    config += [f"model.mixer={small}", "train.batch=8", "train.warmup_steps=0", "precision=fp32"]
    config += ["parallel={}", "train.accumulate=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert translution("train", *config, "train.steps=4", f"run_dir={whole}").code == 0
    words = ("train.steps=4", f"run_dir={stopped}", "train.checkpoint_every=2")
    assert translution("train", *config, *words).code == 0
    remove_checkpoints(stopped, after=2)
    (stopped / "result.json").unlink()
    assert translution("train", "--resume", stopped).code == 0
    results = [json.loads((run / "result.json").read_text())["evaluation"] for run in (whole, stopped)]
    assert results[0] == results[1]
    exported = tmp_path / "net.safetensors"
    assert translution("export", stopped, "--out", exported).code == 0
    names = [name for name in load_file(exported) if name.endswith("running_mean")]
    assert names
    assert all(load_file(exported)[name].any() for name in names)
