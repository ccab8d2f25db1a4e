"""`translution submit` and `resume`: runs become Slurm jobs, each in a directory of its own."""

import shutil
import tempfile
from pathlib import Path

import yaml

from launch.slurm.allocation import Allocation, read_allocation
from launch.slurm.batch_script import executor, script, submit_tasks
from launch.slurm.code_snapshot import snapshot
from launch.slurm.job.evaluate_task import submit_evaluation
from launch.slurm.job.train_task import TrainTask
from launch.slurm.preflight import memory_need
from launch.slurm.queries import ALIVE, check_partition, last_state, queue
from launch.slurm.runs.job_record import FACTS, SUBMITTED, SlurmFacts, claim_run, read_facts, write_facts
from launch.slurm.runs.run_identity import Candidate, candidates, run_path
from launch.slurm.save_time import estimated_save_seconds, last_save_seconds, save_warning
from parallel.errors import UserError
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
) -> list[Path]:
    """Submit the config's run, or an array of runs, and print what was done; returns their directories.

    Everything a person can get wrong, and that can be known here, is checked before anything is
    written; raises UserError. With `dry_run` the batch script is printed and nothing submitted.
    """
    if evaluate_every:
        overrides = [*overrides, "train.evaluate_every=null", f"train.checkpoint_every={evaluate_every}"]
    found = candidates(config, overrides, sweeps, allocation.processes)
    if evaluate_every and found[0].config.study:
        raise UserError("--evaluate-every: is for one net; this config is a study (study=null trains one)")
    needs = [memory_need(candidate.config, allocation) for candidate in found]
    largest = max(needs, key=lambda need: need.save_bytes)
    if largest.fits is False and not force:
        raise UserError(f"{largest.line}; ask for more or shard it, or submit it anyway by --force")
    runs = [run_path(candidate, root) for candidate in found]
    name = found[0].config.name
    if dry_run:
        facts = _facts(found[0], allocation)
        made = executor(runs, allocation, root.absolute() / "<submission>", name, facts, parallel)
        print(largest.line, *(f"would run in {run}" for run in runs), script(made), sep="\n")
        return []
    check_partition(allocation.partition, allocation.nodes, allocation.time)
    dependency = _dependency(after)
    new: list[tuple[Candidate, Path]] = []
    for candidate, run in zip(found, runs, strict=True):
        if claim_run(run, _facts(candidate, allocation)):
            new.append((candidate, run))
        elif not sweeps:
            raise UserError(_submitted_before(run, candidate))
        else:
            print(f"submitted before: {run}")
    if not new:
        print("nothing to submit: every run of the sweep was submitted before")
        return []
    try:
        for candidate, run in new:
            _prepare(run, candidate)
        _start([run for _, run in new], allocation, root, name, parallel, dependency)
    except BaseException:
        for _, run in new:
            if not read_facts(run).jobs:
                shutil.rmtree(run / "code", ignore_errors=True)
                (run / FACTS).unlink()
                (run / SUBMITTED).unlink(missing_ok=True)
        raise
    print(largest.line)
    seconds = estimated_save_seconds(largest.save_bytes, new[0][1])
    if warning := save_warning(seconds, "estimated from its bytes", allocation.signal_delay):
        print(warning)
    for _, run in new:
        _tell(run)
        if evaluate_every:
            submit_evaluation(run, allocation, evaluate_every)
    return [run for _, run in new]


def resume(run: Path, options: dict, overrides: list[str]) -> str:
    """Submit a run that has ended before its last step; returns the job id.

    `options` replace parts of its allocation. Raises UserError when it is waiting, running or done.
    """
    run = run.absolute()
    facts = read_facts(run)
    if facts.job and (row := queue().get(facts.job)):
        raise UserError(f"{run}: job {facts.job} is {row.state}; nothing to resume")
    from trainer.config.run import load_config

    config = load_config(run / SUBMITTED, overrides)
    result = RunDirectory(run).read_result()
    if result and result["step"] >= config.train.steps:
        raise UserError(f"{run}: has finished, at step {result['step']}; give train.steps=… to go further")
    given = {key: value for key, value in options.items() if value not in (None, [])}
    allocation = read_allocation(None, facts.allocation | given)
    check_partition(allocation.partition, allocation.nodes, allocation.time)
    if overrides:
        from launch.slurm.runs.run_identity import resolved

        (run / SUBMITTED).write_text(yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True))
    facts.cancelled, facts.allocation = False, allocation.model_dump()
    write_facts(run, facts)
    _start([run], allocation, run.parent, config.name, None, None)
    seconds = last_save_seconds(run)
    if seconds and (warning := save_warning(seconds, "measured", allocation.signal_delay)):
        print(warning)
    _tell(run)
    return read_facts(run).jobs[-1]


def _start(
    runs: list[Path],
    allocation: Allocation,
    root: Path,
    name: str,
    parallel: int | None,
    dependency: str | None,
) -> None:
    """Hand the prepared runs to Slurm and note their ids."""
    if len(runs) == 1:
        folder = runs[0] / "slurm"
    else:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-sweep-", dir=root.absolute()))
    more = {"dependency": dependency} if dependency else {}
    made = executor(runs, allocation, folder, name, read_facts(runs[0]), parallel, **more)
    ids = submit_tasks(made, [TrainTask(run, []) for run in runs])
    for run, job in zip(runs, ids, strict=True):
        facts = read_facts(run)
        facts.jobs.append(job)
        facts.logs = str(folder)
        write_facts(run, facts)


def _facts(candidate: Candidate, allocation: Allocation) -> SlurmFacts:
    folders = [value for value in dict(candidate.config.data).values() if isinstance(value, Path)]
    data = [str(folder.absolute()) for folder in folders]
    return SlurmFacts(candidate.digest, allocation.model_dump(), data=data)


def _prepare(run: Path, candidate: Candidate) -> None:
    text = yaml.safe_dump(candidate.values, sort_keys=False, allow_unicode=True)
    (run / SUBMITTED).write_text(text)
    snapshot(run)


def _tell(run: Path) -> None:
    facts = read_facts(run)
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    print(f"job {facts.job}  run directory {shown}")
    print(f"  watch it: translution logs {shown} --follow, or translution jobs --watch")


def _submitted_before(run: Path, candidate: Candidate) -> str:
    facts = read_facts(run)
    state = last_state(facts.job) if facts.job else "being submitted"
    if facts.config_hash != candidate.digest:
        return f"run_dir={run} already holds another run, job {facts.job}; name another"
    line = f"{run}: this config was submitted before as job {facts.job}, which is {state}"
    if state in ALIVE:
        return line
    return f"{line}; go on with it by `translution resume {run}`, or give run_dir=… or another seed"


def _dependency(after: Path | None) -> str | None:
    if after is None:
        return None
    job = read_facts(after).job
    state = last_state(job) if job else "not submitted"
    if state == "COMPLETED" or ((after / "result.json").exists() and state not in ALIVE):
        return None
    if state not in ALIVE:
        raise UserError(f"--after {after}: its job {job} is {state}, so this one would never start")
    return f"afterok:{job}"
