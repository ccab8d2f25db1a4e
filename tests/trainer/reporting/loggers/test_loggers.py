"""Loggers take what a run measures; one that fails, is slow or is missing never stops it."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.parts.net import PARTS
from trainer.reporting.loggers import background
from trainer.run_directory.run_directory import RunDirectory


class FakeWandb(ModuleType):
    """Records what a run of the real package would get; `fails` names a call that raises."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("wandb")
        self.fails = fails
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0
        self.Settings = SimpleNamespace

    def init(self, **options: Any) -> "FakeWandb":
        if self.fails == "init":
            raise SystemExit("no login\nand more")
        self.inits.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails == "log":
            raise ConnectionError("no network")
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


class FakeMlflow(ModuleType):
    """The part of MlflowClient that we use, with one store for all clients."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.uris: list[str] = []

        def client(tracking_uri: str) -> FakeMlflow:
            self.uris.append(tracking_uri)
            return self

        self.MlflowClient = client

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        number = f"run-{len(self.runs)}"
        self.runs[number] = {"name": run_name, "tags": tags, "params": {}, "metrics": [], "ended": 0}
        return SimpleNamespace(info=SimpleNamespace(run_id=number))

    def log_param(self, number: str, key: str, value: str) -> None:
        self.runs[number]["params"][key] = value

    def log_metric(self, number: str, name: str, value: float, step: int) -> None:
        self.runs[number]["metrics"].append((name, step))

    def set_terminated(self, number: str) -> None:
        self.runs[number]["ended"] += 1


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_both_services_get_the_scalars_and_a_resumed_run_goes_on_in_its_record(
    config_file: Path, tmp_path: Path, translution: Callable, monkeypatch: pytest.MonkeyPatch
):
    wandb, mlflow, run = FakeWandb(), FakeMlflow(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    words = ["train.loggers=[wandb, mlflow]", "--tag", "first", "--note", "by hand"]
    assert translution("train", config_file, f"run_dir={run}", *words).code == 0
    assert not (run / "tensorboard").exists()
    (first,) = wandb.inits
    assert (first["mode"], first["dir"], first["tags"], first["notes"]) == (
        "offline",
        str(run),
        ["first"],
        "by hand",
    )
    assert first["config"]["model.mixer.kind"] == "translution"
    names = {name for values, _ in wandb.logged for name in values}
    assert {"train/loss", "train/lr", "speed/images_per_second_per_device", "dynamic/accuracy"} <= names
    assert {f"grad_norm/{part}" for part in PARTS} <= names
    assert [step for values, step in wandb.logged if "train/loss" in values] == [
        2,
        3,
        4,
        6,
    ]  # 3 is a checkpoint
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    assert translution("train", "--resume", run, "train.steps=8").code == 0
    again = wandb.inits[1]
    assert (again["id"], again["resume"], again["mode"]) == (first["id"], "allow", "online")
    assert wandb.finished == 2
    (record,) = mlflow.runs.values()
    assert mlflow.uris == 2 * [f"sqlite:///{run / 'mlflow.db'}"]
    assert record["tags"] == {"tag.first": "true", "mlflow.note.content": "by hand"}
    assert record["params"]["train.batch"] == "8"
    assert ("train/loss", 8) in record["metrics"]
    assert record["ended"] == 2


@pytest.mark.parametrize(
    ("fails", "says"), [("init", "SystemExit: no login and more"), ("log", "ConnectionError: no network")]
)
def test_a_logger_that_fails_is_told_once_and_the_run_ends_well(
    fails: str,
    says: str,
    config_file: Path,
    tmp_path: Path,
    translution: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails))
    run = tmp_path / "run"
    done = translution("train", config_file, f"run_dir={run}", "train.loggers=[wandb]")
    assert done.code == 0, done.err
    assert done.out.count(f"wandb logs nothing more, the run goes on: {says}") == 1
    assert (run / "result.json").exists()


def test_a_logger_that_hangs_is_left_behind():
    said, never = list[str](), threading.Event()
    slow = background.Background("slow", never.wait, said.append, close_seconds=0.05)  # pyright: ignore
    slow.add_scalar("loss", 1.0, 1)
    slow.close()
    assert said == ["slow logs nothing more, the run goes on: did not take everything within 0.05 s"]
    never.set()


def test_a_missing_package_is_refused_before_the_run(
    config_file: Path, tmp_path: Path, translution: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = translution("train", config_file, f"run_dir={tmp_path / 'run'}", "train.loggers=[mlflow]")
    assert done.code == 2
    assert "mlflow is not installed; pip install 'translution[mlflow]'" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_study_fills_the_tab_of_hyper_parameters(config_file: Path, tmp_path: Path, translution: Callable):
    root = tmp_path / "study"
    study = "study={model.mixer: [{kind: translution, heads: 1}, {kind: attention, heads: 1}], seed: [0]}"
    assert translution("train", config_file, study, "train.steps=2", f"run_dir={root}").code == 0
    from tensorboard.plugins.hparams import metadata

    member = root / "mixer=attention,seed=0"
    events = EventAccumulator(str(RunDirectory(member).events)).Reload()
    assert events.Scalars("static/accuracy")
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert {key: value.string_value for key, value in start.hparams.items()} == {
        "model.mixer": "attention",
        "seed": "0",
    }
