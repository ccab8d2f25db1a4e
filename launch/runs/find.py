"""The runs below a folder: what their own files say, without Slurm and without loading torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.slurm.runs.job_record import RECORD_FILE
from trainer.run_directory.starts import Start, read_starts

_INSIDE = {"checkpoints", "tensorboard", "profile", "code", "logs", "wandb", "mlflow"}
_SILENT_SECONDS = 600.0  # of a run on another machine, after which it no longer counts as alive
_SMALLER_IS_BETTER = ("loss", "perplexity", "bits", "error")

FINISHED, RUNNING, STOPPED, NEW = "finished", "running", "stopped", "new"


class Best(NamedTuple):
    """The best value of a metric on an evaluation set."""

    value: float
    metric: str
    dataset: str

    @property
    def cost(self) -> float:
        """Smaller for better."""
        return self.value if smaller_is_better(self.metric) else -self.value


class Run(NamedTuple):
    """One net's run.

    path          its directory; `unit` is that of its study, or its own
    state         finished, running, stopped or new; of a submitted run Slurm may know better
    step, steps   optimizer steps done, and to do
    loss          of training, the last logged
    best          by metric and evaluation set, over all evaluations
    device_hours  of the logged steps: their time × devices
    started       seconds since the epoch; None for a run that never did
    changed       when it last wrote something
    config        every value as text, as YAML has it, by dotted key
    """

    path: Path
    unit: Path
    state: str
    step: int
    steps: int | None
    loss: float | None
    best: dict[tuple[str, str], Best]
    parameters: int | None
    device_hours: float
    started: float | None
    changed: float
    tags: tuple[str, ...]
    note: str
    config: dict[str, str]

    @property
    def headline(self) -> Best | None:
        """The best of its first evaluation set and metric, which is not the loss where there is another."""
        return next(iter(self.best.values()), None)

    @property
    def submitted(self) -> bool:
        """Whether it, or its study, is Slurm's."""
        return (self.unit / RECORD_FILE).exists()


def smaller_is_better(metric: str) -> bool:
    return metric.rpartition("_")[2] in _SMALLER_IS_BETTER


def find_runs(folder: Path) -> list[Run]:
    """Every run below a folder, the folder's own included; studies as their nets."""
    return [run for unit in _units(folder) for run in _runs_of(unit)]


def read_run(path: Path, unit: Path | None = None) -> Run:
    """The run in a directory that has a config.yaml; damaged files count as empty."""
    values = _yaml(path / "config.yaml")
    train = values.get("train") or {}
    metrics, starts = _read_metrics(path / "metrics.jsonl"), read_starts(path)
    result = _json(path / "result.json")
    evaluated = _read_metrics(path / "evaluations.jsonl").evaluations
    changed = max((file.stat().st_mtime for file in path.iterdir() if file.is_file()), default=0.0)
    finished = result.get("step", -1) >= (train.get("steps") or 0)
    return Run(
        path=path,
        unit=unit or path,
        state=FINISHED if finished else _state(starts, metrics.step > 0, changed),
        step=result.get("step", metrics.step) if finished else metrics.step,
        steps=train.get("steps"),
        loss=metrics.loss,
        best=_best(metrics.evaluations + evaluated),
        parameters=starts[-1].parameters if starts else result.get("parameters"),
        device_hours=metrics.device_seconds_per_sample * (train.get("batch") or 0) / 3600,
        started=starts[0].time if starts else None,
        changed=changed,
        tags=tuple(map(str, values.get("tags") or ())),
        note=str(values.get("note") or ""),
        config=_flat(values),
    )


def _units(folder: Path) -> Iterator[Path]:
    """The directories of runs and studies, not those inside another."""
    for place, names, files in os.walk(folder):
        if "config.yaml" in files and {"version.json", "metrics.jsonl", RECORD_FILE} & set(files):
            names.clear()
            yield Path(place)
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _INSIDE)


def _runs_of(unit: Path) -> list[Run]:
    if not _yaml(unit / "config.yaml").get("study"):
        return [read_run(unit)]
    members = sorted(path.parent for path in unit.glob("*/config.yaml"))
    return [read_run(member, unit) for member in members] or [read_run(unit)]


def _state(starts: list[Start], logged: bool, changed: float) -> str:
    if not starts and not logged:
        return NEW
    alive = starts[-1].alive if starts else None
    if alive is None:
        alive = time.time() - changed < _SILENT_SECONDS
    return RUNNING if alive else STOPPED


def _best(evaluations: list[dict[str, dict[str, float]]]) -> dict[tuple[str, str], Best]:
    found: dict[tuple[str, str], Best] = {}
    for evaluation in evaluations:
        for dataset, metrics in evaluation.items():
            for metric, value in sorted(metrics.items(), key=lambda item: item[0] == "loss"):
                new, key = Best(value, metric, dataset), (dataset, metric)
                if key not in found or new.cost < found[key].cost:
                    found[key] = new
    return found


class _Metrics(NamedTuple):
    """What a metrics.jsonl says; `device_seconds_per_sample` is summed over all its steps."""

    step: int
    loss: float | None
    evaluations: list[dict[str, dict[str, float]]]
    device_seconds_per_sample: float


def _read_metrics(path: Path) -> _Metrics:
    """Parses the few lines that matter: evaluations, those that end a log and so have its speed, and the last
    step. A line that is damaged, or being written, counts for nothing."""
    step, before, seconds, evaluations, last = 0, 0, 0.0, list[dict[str, dict[str, float]]](), b""
    try:
        with path.open("rb") as file:
            for line in file:
                evaluation = b'"evaluation"' in line
                if not evaluation and line.endswith(b"}\n") and b'"loss"' in line:
                    last = line
                if not evaluation and b"_per_device" not in line:
                    continue
                record = _parsed(line)
                step = max(step, record.get("step", 0))
                if evaluation and "evaluation" in record:
                    evaluations.append(record["evaluation"])
                elif (rate := record.get("samples_per_second")) and "step" in record:
                    devices = round(rate / record["samples_per_second_per_device"])
                    seconds += (record["step"] - before) * devices / rate
                    before = record["step"]
    except OSError:
        pass
    record = _parsed(last)
    return _Metrics(max(step, record.get("step", 0)), record.get("loss"), evaluations, seconds)


def _flat(values: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, bool)
            flat[f"{prefix}{key}"] = json.dumps(value) if plain else str(value)
    return flat


def _yaml(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return values if isinstance(values, dict) else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return {}


def _parsed(text: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none."""
    try:
        values = json.loads(text)
        return values if isinstance(values, dict) else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
