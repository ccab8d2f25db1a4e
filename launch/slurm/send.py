"""Gives prepared run directories to sbatch, and records the jobs."""

import shutil
import uuid
from pathlib import Path
from typing import Any

import yaml

from launch.slurm.allocation import Allocation
from launch.slurm.batch_script import make_executor, submit_tasks
from launch.slurm.job.train_task import TrainTask
from launch.slurm.runs.job_record import SUBMITTED_CONFIG, read_record, write_record


def send(
    runs: list[Path],
    allocation: Allocation,
    name: str,
    sweep_root: Path | None = None,
    parallel: int | None = None,
    dependency: str | None = None,
) -> None:
    """Submit runs whose directories are prepared, as an array if there are several, and record their jobs.

    With `sweep_root` the runs are one sweep: a new folder there holds their output. Raises UserError, and
    leaves nothing behind, where sbatch refuses.
    """
    folder = runs[0] / "slurm"
    if sweep_root:
        folder = sweep_root.absolute() / f"{name}-sweep-{uuid.uuid4().hex[:8]}"
    existed = folder.exists() and not sweep_root
    try:
        executor = make_executor(runs, allocation, folder, name, read_record(runs[0]), parallel, dependency)
        jobs = submit_tasks(executor, [TrainTask(run) for run in runs])
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for run, job in zip(runs, jobs, strict=True):
        record = read_record(run)
        record.jobs.append(job)
        record.logs = str(folder)
        if sweep_root:
            record.sweep = str(folder)
        write_record(run, record)


def write_config(run: Path, values: dict[str, Any]) -> None:
    """Write the config that the run's jobs read."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (run / SUBMITTED_CONFIG).write_text(text)


def announce(run: Path) -> None:
    """Print a submitted run's job and directory, and how to watch it."""
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    print(f"job {read_record(run).job}  run directory {shown}")
    print(f"  to watch it: translution logs {shown} --follow, or translution jobs --watch")
