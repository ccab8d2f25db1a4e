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
    records, starts = _json_lines(path / "metrics.jsonl"), read_starts(path)
    steps = [record for record in records if "loss" in record]
    result = _json(path / "result.json")
    evaluations = [record["evaluation"] for record in records if "evaluation" in record]
    evaluations += [record["evaluation"] for record in _json_lines(path / "evaluations.jsonl")]
    last = max((record["step"] for record in records), default=0)
    changed = max((file.stat().st_mtime for file in path.iterdir() if file.is_file()), default=0.0)
    finished = result.get("step", -1) >= (train.get("steps") or 0)
    return Run(
        path=path,
        unit=unit or path,
        state=FINISHED if finished else _state(starts, bool(records), changed),
        step=result.get("step", last) if finished else last,
        steps=train.get("steps"),
        loss=steps[-1]["loss"] if steps else None,
        best=_best(evaluations),
        parameters=starts[-1].parameters if starts else result.get("parameters"),
        device_hours=_device_hours(steps, train.get("batch") or 0),
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


def _device_hours(steps: list[dict[str, Any]], batch: int) -> float:
    """Each step's time by its rate; devices by the rate per device, which fewer steps have."""
    total, waiting = 0.0, 0.0
    for record in steps:
        rate = record.get("samples_per_second")
        waiting += batch / rate if rate else 0.0
        if per_device := record.get("samples_per_second_per_device"):
            total += waiting * round(rate / per_device) if rate else 0.0
            waiting = 0.0
    return (total + waiting) / 3600


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
        values = json.loads(path.read_text())
        return values if isinstance(values, dict) else {}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Up to the first damaged line; a run may be writing the last one."""
    records: list[dict[str, Any]] = []
    try:
        for line in path.read_text().splitlines():
            records.append(json.loads(line))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        pass
    return records
