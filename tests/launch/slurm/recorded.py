"""Run directories as jobs leave them, and Slurm's commands that answer with recorded output.

The output is in the formats that Slurm 22.05 printed for the queries of launch/slurm/queries.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import yaml

NOW = 1_790_000_000.0
ALLOCATION = {"nodes": 2, "gpus_per_node": 4, "max_requeues": 2, "signal_delay": 60}


class RecordedSlurm:
    """`squeue`, `sacct` and others in `folder`, which the test puts first in PATH; counts their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.says("squeue", "")
        self.says("sacct", "")

    def says(self, command: str, output: str, code: int = 0) -> None:
        """From now on the command prints this; with a code other than 0 on stderr."""
        (self.folder / f"{command}.out").write_text(output)
        script = self.folder / command
        script.write_text(
            f'#!/bin/sh\necho "{command} $*" >> {self.folder}/calls\n'
            f"cat {self.folder}/{command}.out {'>&2' if code else ''}\n"
            f"exit {code}\n"
        )
        script.chmod(0o755)

    def calls(self) -> list[str]:
        """The command lines since the last time."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


def event(name: str, job: str, seconds: float, **values: Any) -> dict[str, Any]:
    """A job event, `seconds` from NOW."""
    return {"event": name, "job": job, "restart": 0, "time": NOW + seconds} | values


def make_run(
    run: Path,
    job: str | None,
    *,
    step: int = 0,
    submitted: float = -3600.0,
    events: list[dict[str, Any]] | None = None,
    allocation: dict[str, Any] | None = None,
    steps: int = 1000,
    **record: Any,
) -> Path:
    """A submitted run of a net of 1,000 steps of 64 samples that has logged `step` at 128 samples/s."""
    run.mkdir(parents=True)
    values = {
        "config_hash": run.name,
        "allocation": ALLOCATION | (allocation or {}),
        "jobs": [job] if job else [],
    }
    values |= {"submitted": NOW + submitted, "folder": str(run.parent), "logs": str(run / "slurm")} | record
    (run / "slurm.json").write_text(json.dumps(values))
    (run / "submitted.yaml").write_text(yaml.safe_dump({"train": {"steps": steps, "batch": 64}}))
    if events:
        (run / "lives.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    if step:
        line = {"step": step, "loss": 1000 / step, "samples_per_second": 128.0}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        os.utime(run / "metrics.jsonl", (NOW - 60, NOW - 60))
    return run


def write_log(run: Path, job: str, rank: int, text: str) -> None:
    """Output of a rank, as submitit's executor names it."""
    (run / "slurm").mkdir(exist_ok=True)
    (run / "slurm" / f"{job}_{rank}_log.out").write_text(text)
