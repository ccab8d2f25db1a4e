"""A run is a directory: config, code version, metrics, TensorBoard events, checkpoints, result."""

import json
import platform
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from parallel.code_folder import code_version
from parallel.errors import UserError
from parallel.processes import rank
from trainer.atomic_write import atomic_write
from trainer.config.numerics import numerics_record
from trainer.config.run import RunConfig
from trainer.errors import machine_error
from trainer.run_directory.ownership import Ownership
from trainer.run_directory.starts import STARTS, this_start

_LEFTOVER_SECONDS = 600.0  # no file but a checkpoint takes longer to write


class RunDirectory:
    """Names and formats of the files of one run under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.events = path / "tensorboard"
        self.profile = path / "profile"
        self.result = path / "result.json"
        self.saves = path / "saves.jsonl"
        self.origin = path / "init_from.json"
        self.ownership = Ownership(path)

    def create(self, config: RunConfig, again: bool = False) -> None:
        """Make a new run; raises UserError when `path` holds one or cannot be written.

        With `again`, a run that `path` holds starts over.
        """
        if not again:
            self.refuse_second()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise machine_error(error, f"run_dir={self.path}", "be created") from None
        self.ownership.claim()
        if self.metrics.exists():
            self._replace(self.metrics, "")
        self.origin.unlink(missing_ok=True)
        self.save_config(config)

    def refuse_second(self) -> None:
        """Raises UserError when `path` holds a run."""
        if self.config.exists():
            raise UserError(
                f"run_dir={self.path} already holds a run; "
                f"resume it with --resume {self.path}, or name another run_dir"
            )

    def clear_leftovers(self) -> None:
        """Delete the temporary files of processes that were killed while they wrote."""
        for path in self.path.glob(".*.new"):
            try:
                if path.is_file() and time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()
            except OSError:
                continue  # another process was faster

    def save_config(self, config: RunConfig) -> None:
        """Write the resolved config and what runs it: versions, device, and switches of torch."""
        # Each net of a study resolves its own defaults: one net's keys may be unknown to another.
        given_only = config.study is not None
        values = config.model_dump(mode="json", exclude={"run_dir"}, exclude_unset=given_only)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        self._replace(self.config, text)
        self._replace(self.path / "version.json", json.dumps(run_versions(), indent=2) + "\n")

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Add one line of JSON per record to metrics.jsonl."""
        self._append(self.metrics, records)

    def append_start(self, processes: int, parameters: int) -> None:
        """Add to starts.jsonl that this process begins to train, with so many others."""
        self._append(self.path / STARTS, [this_start(processes, parameters)])

    def append_save(self, step: int, seconds: float, stall: float, size: int) -> None:
        """Add to saves.jsonl how long a checkpoint took to write, how long training stood still for it, and
        its size in bytes."""
        record = {"step": step, "seconds": round(seconds, 3), "stall": round(stall, 4), "bytes": size}
        self._append(self.saves, [record])

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete records; a line cut short by a crash ends them."""
        if not self.metrics.exists():
            return []
        records = []
        for line in self.metrics.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def forget_after(self, step: int, keep_evaluation: bool = False) -> None:
        """Drop what a run resumed at `step` will write again: later steps, and the evaluation at `step`."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        records = [r for r in kept if keep_evaluation or r["step"] < step or "evaluation" not in r]
        self._replace(self.metrics, "".join(json.dumps(record) + "\n" for record in records))

    def save_origin(self, origin: dict[str, Any]) -> None:
        """Write init_from.json: the file that the first weights come from, and its net."""
        self._replace(self.origin, json.dumps(origin, indent=2, ensure_ascii=False) + "\n")

    def read_origin(self) -> dict[str, Any]:
        """What save_origin was given; empty for a run that drew its first weights."""
        return json.loads(self.origin.read_text()) if self.origin.exists() else {}

    def save_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        self._replace(self.result, json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished run."""
        return json.loads(self.result.read_text()) if self.result.exists() else None

    def _replace(self, path: Path, text: str) -> None:
        if rank():
            return  # rank 0 writes for all
        self.ownership.check()
        atomic_write(path, text)

    def _append(self, path: Path, records: list[dict[str, Any]]) -> None:
        if rank():
            return
        self.ownership.check()
        try:
            with path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
        except OSError as error:
            raise machine_error(error, path, "be written") from None


def run_versions() -> dict[str, Any]:
    """What runs a net: versions, device, and switches of torch."""
    return {
        "translution": code_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **numerics_record(),
    }


def new_run_path(name: str) -> Path:
    """An unused path under runs/."""
    base = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path
