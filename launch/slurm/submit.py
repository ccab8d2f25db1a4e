"""`translution submit` and `translution resume`: submit runs to Slurm, each with its own run directory."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from launch.rehearse.before_submit import rehearse_before_submit
from launch.slurm.allocation import Allocation, read_allocation
from launch.slurm.batch_script import batch_script, make_executor, submit_tasks
from launch.slurm.code_snapshot import snapshot
from launch.slurm.job.evaluate_task import submit_evaluation
from launch.slurm.job.train_task import TrainTask
from launch.slurm.preflight import estimated_save_seconds, last_save_seconds, memory_need, save_warning
from launch.slurm.queries import ALIVE, check_partition, last_state, queue
from launch.slurm.runs.job_record import (
    RECORD_FILE,
    SUBMITTED_CONFIG,
    JobRecord,
    claim_run,
    read_record,
    write_record,
)
from launch.slurm.runs.run_identity import Candidate, candidates, resolved, run_path
from parallel.errors import UserError
from trainer.config.run import load_config
from trainer.run_directory.run_directory import RunDirectory


def submit(
    config: str,
    overrides: list[str],
    allocation: Allocation,
    root: Path,
    sweeps: list[str],
    parallel: int | None = None,
    after: Path | None = None,
    evaluate_every: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    rehearse: bool = True,
) -> list[Path]:
    """Submit the config's run, or a sweep's runs as an array, and print their job ids and directories.

    Returns the new run directories. Checks everything it can before writing anything; raises UserError.
    With `dry_run` prints the batch script and submits nothing. With `rehearse` the largest run is rehearsed
    first.
    """
    if evaluate_every:
        overrides = [*overrides, "train.evaluate_every=null", f"train.checkpoint_every={evaluate_every}"]
    found = candidates(config, overrides, sweeps, allocation.processes)
    if evaluate_every and found[0].config.study:
        raise UserError("--evaluate-every: this config is a study, not a single net (study=null trains one)")
    needs = [memory_need(candidate.config, allocation) for candidate in found]
    largest = max(needs, key=lambda need: need.save_bytes)
    if largest.fits is False and not force:
        raise UserError(f"{largest.line}; ask for more memory, shard the model, or give --force")
    runs = [run_path(candidate, root) for candidate in found]
    name = found[0].config.name
    if dry_run:
        folder, record = root.absolute() / "<submission>", _new_record(found[0], allocation)
        executor = make_executor(runs, allocation, folder, name, record, parallel)
        print(largest.line, *(f"would run in {run}" for run in runs), batch_script(executor), sep="\n")
        return []
    check_partition(allocation.partition, allocation.nodes, allocation.time)
    dependency = _dependency(after)
    if rehearse:
        print(rehearse_before_submit(found[needs.index(largest)].config, allocation, force))
    new: list[tuple[Candidate, Path]] = []
    for candidate, run in zip(found, runs, strict=True):
        if claim_run(run, _new_record(candidate, allocation)):
            new.append((candidate, run))
        elif not sweeps:
            raise UserError(_already_submitted(run, candidate))
        else:
            print(f"already submitted: {run}")
    if not new:
        print("nothing to submit: all runs of the sweep are already submitted")
        return []
    try:
        for candidate, run in new:
            _write_config(run, candidate.values)
            snapshot(run)
        _submit_prepared([run for _, run in new], allocation, root, name, parallel, dependency)
    except BaseException:
        for _, run in new:
            if not read_record(run).jobs:
                shutil.rmtree(run / "code", ignore_errors=True)
                (run / RECORD_FILE).unlink()
                (run / SUBMITTED_CONFIG).unlink(missing_ok=True)
        raise
    print(largest.line)
    seconds = estimated_save_seconds(largest.save_bytes, new[0][1])
    if warning := save_warning(seconds, "estimated from its size", allocation.signal_delay):
        print(warning)
    for _, run in new:
        _print_job(run)
        if evaluate_every:
            submit_evaluation(run, allocation, evaluate_every)
    return [run for _, run in new]


def resume(run: Path, options: dict[str, Any], overrides: list[str]) -> str:
    """Submit again a run that ended before its last step; returns the job id.

    `options` replace values of its allocation. Raises UserError if it is pending, running or finished.
    """
    run = run.absolute()
    record = read_record(run)
    if record.job and (row := queue().get(record.job)):
        raise UserError(f"{run}: job {record.job} is {row.state}; nothing to resume")
    config = load_config(run / SUBMITTED_CONFIG, overrides)
    result = RunDirectory(run).read_result()
    if result and result["step"] >= config.train.steps:
        raise UserError(f"{run}: finished at step {result['step']}; give train.steps=… to train longer")
    allocation = read_allocation(None, record.allocation | options)
    check_partition(allocation.partition, allocation.nodes, allocation.time)
    if overrides:
        _write_config(run, resolved(config))
    record.cancelled, record.allocation = False, allocation.model_dump()
    write_record(run, record)
    _submit_prepared([run], allocation, run.parent, config.name, None, None)
    seconds = last_save_seconds(run)
    if seconds and (warning := save_warning(seconds, "measured", allocation.signal_delay)):
        print(warning)
    _print_job(run)
    return read_record(run).jobs[-1]


def _submit_prepared(
    runs: list[Path],
    allocation: Allocation,
    root: Path,
    name: str,
    parallel: int | None,
    dependency: str | None,
) -> None:
    """Submit runs whose directories are prepared, and record their job ids."""
    if len(runs) == 1:
        folder = runs[0] / "slurm"
    else:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-sweep-", dir=root.absolute()))
    after = {"dependency": dependency} if dependency else {}
    executor = make_executor(runs, allocation, folder, name, read_record(runs[0]), parallel, **after)
    jobs = submit_tasks(executor, [TrainTask(run) for run in runs])
    for run, job in zip(runs, jobs, strict=True):
        record = read_record(run)
        record.jobs.append(job)
        record.logs = str(folder)
        write_record(run, record)


def _new_record(candidate: Candidate, allocation: Allocation) -> JobRecord:
    folders = [value for value in dict(candidate.config.data).values() if isinstance(value, Path)]
    data = [str(folder.absolute()) for folder in folders]
    return JobRecord(candidate.digest, allocation.model_dump(), data=data)


def _write_config(run: Path, values: dict[str, Any]) -> None:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (run / SUBMITTED_CONFIG).write_text(text)


def _print_job(run: Path) -> None:
    record = read_record(run)
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    print(f"job {record.job}  run directory {shown}")
    print(f"  to watch it: translution logs {shown} --follow, or translution jobs --watch")


def _already_submitted(run: Path, candidate: Candidate) -> str:
    record = read_record(run)
    state = last_state(record.job) if record.job else "being submitted"
    if record.config_hash != candidate.digest:
        return f"run_dir={run} already holds another run, job {record.job}; choose another run_dir"
    line = f"{run}: this config was already submitted as job {record.job}, which is {state}"
    if state in ALIVE:
        return line
    return f"{line}; resume it with `translution resume {run}`, or give run_dir=… or another seed"


def _dependency(after: Path | None) -> str | None:
    """sbatch's --dependency for a job that waits for the run `after`; None if that has finished."""
    if after is None:
        return None
    job = read_record(after).job
    state = last_state(job) if job else "not submitted"
    if state == "COMPLETED" or ((after / "result.json").exists() and state not in ALIVE):
        return None
    if state not in ALIVE:
        raise UserError(f"--after {after}: its job {job} is {state}, so this job would never start")
    return f"afterok:{job}"
