"""`translution submit`: submit runs to Slurm, each with its own run directory."""

import contextlib
import shutil
from pathlib import Path

from launch.rehearse.before_submit import rehearse_before_submit
from launch.slurm.allocation import Allocation
from launch.slurm.batch_script import batch_script, make_executor
from launch.slurm.code_snapshot import snapshot
from launch.slurm.job.evaluate_task import submit_evaluation
from launch.slurm.nodes import check_partition
from launch.slurm.preflight import (
    check_data,
    confirm,
    estimated_save_seconds,
    memory_need,
    nodes_memory,
    refuse_too_large,
    save_warning,
)
from launch.slurm.queries import ALIVE, last_state
from launch.slurm.runs.job_record import RECORD_FILE, SUBMITTED_CONFIG, JobRecord, claim_run, read_record
from launch.slurm.runs.run_identity import Candidate, candidates, run_path
from launch.slurm.runs.selection import select_runs
from launch.slurm.runs.states import SlurmView
from launch.slurm.send import announce, send, write_config
from parallel.errors import UserError


def submit(
    config: str,
    overrides: list[str],
    allocation: Allocation,
    root: Path,
    sweeps: list[str],
    parallel: int | None = None,
    after: list[str] | None = None,
    evaluate_every: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    rehearse: bool = True,
) -> list[Path]:
    """Submit the config's run, or a sweep's runs as an array, and print their job ids and directories.

    Returns the new run directories. Checks everything it can before writing anything; raises UserError.
    `after` are runs, as selection.py reads them, that must finish first. With `dry_run` prints the batch
    script and submits nothing. With `rehearse` the largest run is rehearsed first.
    """
    if evaluate_every:
        overrides = [*overrides, "train.evaluate_every=null", f"train.checkpoint_every={evaluate_every}"]
    found = candidates(config, overrides, sweeps, allocation.processes)
    if evaluate_every and found[0].config.study:
        raise UserError("--evaluate-every: this config is a study, not a single net (study=null trains one)")
    return submit_all(
        found,
        found[0].config.name,
        allocation,
        root,
        bool(sweeps),
        parallel,
        after,
        evaluate_every,
        force,
        dry_run,
        rehearse,
    )


def submit_all(
    found: list[Candidate],
    name: str,
    allocation: Allocation,
    root: Path,
    sweep: bool,
    parallel: int | None = None,
    after: list[str] | None = None,
    evaluate_every: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    rehearse: bool = True,
) -> list[Path]:
    """The rest of `submit`, for runs that were resolved before; a `sweep` of them is one array `name`."""
    if not force:
        for candidate in found:
            check_data(candidate.config)
    if not dry_run:
        check_partition(allocation.partition, allocation.nodes, allocation.time)
    needs = [memory_need(candidate.config, allocation) for candidate in found]
    memory = nodes_memory(allocation)
    verdict = max(needs, key=lambda need: need.peak).verdict(memory)
    if not force:
        refuse_too_large(verdict)
    runs = [run_path(candidate, root) for candidate in found]
    if dry_run:
        folder, record = root.absolute() / "<submission>", _new_record(found[0], allocation)
        executor = make_executor(runs, allocation, folder, name, record, parallel)
        print(verdict.line, *(f"would run in {run}" for run in runs), batch_script(executor), sep="\n")
        return []
    dependency = _dependency(after, root) if after else None
    if not force:
        confirm(verdict)
    lines = [verdict.line]
    if rehearse:
        largest = max(zip(needs, found, strict=True), key=lambda each: each[0].peak)[1]
        least = memory and memory.least_gb * 1e9
        lines.append(rehearse_before_submit(largest.config, allocation, least, force))
    new = _claim(found, runs, allocation, sweep)
    if not new:
        print("nothing to submit: all runs of the sweep are already submitted")
        return []
    try:
        for run, candidate in new.items():
            write_config(run, candidate.values)
            snapshot(run)
        send(list(new), allocation, name, root if sweep else None, parallel, dependency)
    except BaseException:
        _remove(list(new), root)
        raise
    print(*lines, sep="\n")
    seconds = estimated_save_seconds(max(need.save for need in needs), next(iter(new)))
    if warning := save_warning(seconds, "estimated from its size", allocation.signal_delay):
        print(warning)
    for run in new:
        announce(run)
        if evaluate_every:
            submit_evaluation(run, allocation, evaluate_every)
    if sweep:
        print(f"when they have finished: translution sweep {read_record(next(iter(new))).sweep}")
    return list(new)


def _claim(
    found: list[Candidate], runs: list[Path], allocation: Allocation, sweep: bool
) -> dict[Path, Candidate]:
    """Make the run directories, and return those that no earlier submission has. Raises UserError for a
    single run that one has, and leaves nothing behind where a directory cannot be made."""
    new: dict[Path, Candidate] = {}
    try:
        for candidate, run in zip(found, runs, strict=True):
            if claim_run(run, _new_record(candidate, allocation)):
                new[run] = candidate
            elif not sweep:
                raise UserError(_already_submitted(run, candidate))
            else:
                print(f"already submitted: {run}")
    except BaseException:
        _remove(list(new), runs[0].parent)
        raise
    return new


def _remove(runs: list[Path], root: Path) -> None:
    """Undo the preparation of runs that have no job: their directories, where nothing else is in them."""
    for run in runs:
        if (run / RECORD_FILE).exists() and read_record(run).jobs:
            continue
        for folder in ("code", "slurm"):
            shutil.rmtree(run / folder, ignore_errors=True)
        for file in (RECORD_FILE, SUBMITTED_CONFIG):
            (run / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            run.rmdir()
    with contextlib.suppress(OSError):
        root.rmdir()


def _new_record(candidate: Candidate, allocation: Allocation) -> JobRecord:
    folders = [value for value in dict(candidate.config.data).values() if isinstance(value, Path)]
    data = [str(folder.absolute()) for folder in folders]
    return JobRecord(candidate.digest, allocation.model_dump(), data=data, label=candidate.label)


def _already_submitted(run: Path, candidate: Candidate) -> str:
    record = read_record(run)
    state = last_state(record.job) if record.job else "being submitted"
    if record.config_hash != candidate.digest:
        return f"run_dir={run} already holds another run, job {record.job}; choose another run_dir"
    line = f"{run}: this config was already submitted as job {record.job}, which is {state}"
    if state in ALIVE:
        return line
    return f"{line}; resume it with `translution resume {run}`, or give run_dir=… or another seed"


def _dependency(after: list[str], root: Path) -> str | None:
    """sbatch's --dependency for a job that waits for runs; None if all have finished."""
    jobs = []
    for run, state in SlurmView().look(select_runs(after, root)).items():
        job = read_record(run).job
        if state.state in ALIVE:
            jobs.append(job)
        elif state.state != "COMPLETED":
            raise UserError(f"--after {run}: its job {job} is {state.state}, so this job would never start")
    return f"afterok:{':'.join(jobs)}" if jobs else None
