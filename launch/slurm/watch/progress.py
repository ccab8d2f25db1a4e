"""How far a run is, how fast it trains, and what it has cost, from the files of its run directory."""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.slurm.runs.failures import tail
from launch.slurm.runs.job_record import SUBMITTED_CONFIG, JobRecord, read_events

_TAIL_BYTES = 8192
_CONFIGS: dict[tuple[Path, float], dict[str, Any]] = {}
"""Configs that were read, by file and time of change: a watched folder is looked at many times."""


class RunProgress(NamedTuple):
    """A run's figures; for a study those of the net logged last, and `seconds_left` of all its nets.

    samples_per_second   over the whole job
    seconds_left         of training, at this rate
    device_hours         over all starts: hours × devices, or processes without devices
    restarts             over all jobs
    """

    step: int
    steps: int | None
    loss: float | None
    samples_per_second: float | None
    seconds_left: float | None
    device_hours: float
    restarts: int


def run_progress(run: Path, record: JobRecord, running: bool) -> RunProgress:
    """Reads the end of metrics.jsonl, the events and the submitted config."""
    logged = [*run.glob("metrics.jsonl"), *run.glob("*/metrics.jsonl")]
    newest = max(logged, key=lambda path: path.stat().st_mtime, default=None)
    last = _last_logged(newest) if newest else {}
    config = _config(run / SUBMITTED_CONFIG)
    train, study = config.get("train") or {}, config.get("study") or {}
    steps, rate, step = train.get("steps"), last.get("samples_per_second"), last.get("step", 0)
    left = None
    if running and rate and steps and train.get("batch"):
        nets = math.prod(len(values) for values in study.values()) if study else 1
        done = len(list(run.glob("*/result.json"))) if study else 0
        left = (max(nets - done - 1, 0) * steps + max(steps - step, 0)) * train["batch"] / rate
    events = read_events(run)
    starts = sum(event["event"] == "start" for event in events)
    written = newest.stat().st_mtime if newest else 0.0
    hours = _device_hours(events, record, time.time() if running else written)
    return RunProgress(step, steps, last.get("loss"), rate, left, hours, max(0, starts - 1))


def _last_logged(path: Path) -> dict[str, Any]:
    for line in reversed(tail(path, _TAIL_BYTES)):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "loss" in record:
            return record
    return {}


def _config(path: Path) -> dict[str, Any]:
    try:
        key = (path, path.stat().st_mtime)
        if key not in _CONFIGS:
            values = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            _CONFIGS[key] = values if isinstance(values, dict) else {}
        return _CONFIGS[key]
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}


def _device_hours(events: list[dict[str, Any]], record: JobRecord, until: float) -> float:
    """From each start to the last event before the next one; a last start without an end lasts `until`."""
    allocation = record.allocation
    per_node = allocation.get("gpus_per_node") or allocation.get("tasks_per_node") or 1
    usual = allocation.get("nodes", 1) * per_node
    total, number = 0.0, 0
    while number < len(events):
        start = events[number]
        number += 1
        if start["event"] != "start":
            continue
        end = start["time"]
        while number < len(events) and events[number]["event"] != "start":
            end = events[number]["time"]
            number += 1
        if number == len(events) and events[-1] is start:
            end = max(end, until)
        total += (end - start["time"]) * start.get("processes", usual)
    return total / 3600
