"""Run directories written by hand, as training leaves them."""

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import TINY
from trainer.run_directory.starts import this_start


def write_run(
    path: Path,
    accuracies: tuple[float, ...] = (),
    steps_done: int = 6,
    start: dict[str, Any] | None = None,
    age: float = 0.0,
    finished: bool = True,
    rate: float = 8.0,
    **changes: Any,
) -> Path:
    """A run of the tiny net that logged each second one step of 8 samples on 2 devices.

    accuracies  of its evaluations, of which the last is its result
    start       of its process, in place of one on this machine that has ended
    age         seconds since it last wrote
    changes     sections or values of its config
    """
    path.mkdir(parents=True)
    config = {"name": path.name, **TINY, **changes}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "version.json").write_text("{}")
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 3.0 - step / 10, "lr": 1e-3, "samples_per_second": rate}
        | ({"samples_per_second_per_device": rate / 2} if step % 2 == 0 else {})
        for step in range(1, steps_done + 1)
    ]
    evaluations = [{"static": {"accuracy": each, "loss": 100 - each}} for each in accuracies]
    rows += [{"step": steps_done, "evaluation": each} for each in evaluations]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        result = {
            "step": steps_done,
            "parameters": 1234,
            "evaluation": evaluations[-1] if evaluations else {},
        }
        (path / "result.json").write_text(json.dumps(result))
    ended = this_start(2, 1234) | {"born": "0", "time": 1_700_000_000.0}
    (path / "starts.jsonl").write_text(json.dumps(start or ended) + "\n")
    set_age(path, age)
    return path


def write_study(path: Path, members: dict[str, dict[str, Any]], age: float = 0.0) -> Path:
    """A study whose members are `write_run`s with these arguments."""
    path.mkdir(parents=True)
    config = {"name": path.name, **TINY, "study": {"seed": list(range(len(members)))}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "version.json").write_text("{}")
    for name, arguments in members.items():
        write_run(path / name, age=age, **arguments)
    set_age(path, age)
    return path


def set_age(path: Path, age: float) -> None:
    for file in path.iterdir():
        os.utime(file, (time.time() - age,) * 2)
