"""`translution resume`: submit again runs that ended before their last step, or from an earlier one."""

from pathlib import Path
from typing import Any

from launch.slurm.allocation import Allocation, read_allocation
from launch.slurm.job.evaluate_task import submit_evaluation
from launch.slurm.nodes import check_partition
from launch.slurm.preflight import (
    check_data,
    confirm,
    last_save_seconds,
    memory_need,
    nodes_memory,
    refuse_too_large,
    save_warning,
)
from launch.slurm.runs.job_record import SUBMITTED_CONFIG, JobRecord, read_record, write_record
from launch.slurm.runs.run_identity import resolved
from launch.slurm.runs.states import alive_jobs
from launch.slurm.send import announce, send, write_config
from parallel.errors import UserError
from trainer.config.run import RunConfig, load_config
from trainer.config.study import run_members
from trainer.run_directory.awaited import forget_evaluations
from trainer.run_directory.checkpoints import checkpoint_step, checkpoints, put_back, set_aside
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import check_net


def resume(
    runs: list[Path],
    options: dict[str, Any],
    overrides: list[str],
    from_step: int | None = None,
    force: bool = False,
) -> list[str]:
    """Submit again runs that ended; returns the job ids.

    `options` replace values of their allocations. With `from_step` they resume from the checkpoint of that
    step; newer ones are set aside. Raises UserError, before submitting any, if one is pending, running or
    finished, cannot train so, or, without `force`, does not fit into memory or names data that is not here.
    """
    runs = [run.absolute() for run in runs]
    alive = alive_jobs(runs)
    prepared = [_prepare(run, alive.get(run, []), options, overrides, from_step) for run in runs]
    lines: list[str] = []
    for _, config, allocation in prepared:
        check_partition(allocation.partition, allocation.nodes, allocation.time)
        for member in run_members(config):
            check_net(member.config, allocation.processes)
        verdict = memory_need(config, allocation).verdict(nodes_memory(allocation))
        lines.append(verdict.line)
        if force:
            continue
        if overrides:
            check_data(config)
        refuse_too_large(verdict)
        confirm(verdict)
    for run, (record, config, allocation), line in zip(runs, prepared, lines, strict=True):
        aside = set_aside(RunDirectory(run).checkpoints, from_step) if from_step is not None else None
        before = (run / SUBMITTED_CONFIG).read_text()
        try:
            if overrides:
                write_config(run, resolved(config))
            write_record(run, _again(record, allocation))
            send([run], allocation, config.name)
        except BaseException:
            (run / SUBMITTED_CONFIG).write_text(before)
            write_record(run, record)
            if aside:
                put_back(aside)
            raise
        if from_step is not None:
            (run / "result.json").unlink(missing_ok=True)
            forget_evaluations(run, from_step)
            where = f"; newer checkpoints are in {aside}" if aside else ""
            print(f"{run.name}: from step {from_step}{where}")
        print(line)
        seconds = last_save_seconds(run)
        if seconds and (warning := save_warning(seconds, "measured", allocation.signal_delay)):
            print(warning)
        announce(run)
        if record.evaluate_every and not set(record.evaluation_jobs) & set(alive.get(run, [])):
            submit_evaluation(run, allocation, record.evaluate_every)
    return [read_record(run).jobs[-1] for run in runs]


def _prepare(
    run: Path, alive: list[str], options: dict[str, Any], overrides: list[str], from_step: int | None
) -> tuple[JobRecord, RunConfig, Allocation]:
    """The run's record, its config with `overrides`, and its allocation with `options`; raises UserError."""
    record = read_record(run)
    if record.job in alive:
        raise UserError(f"{run}: job {record.job} is alive; nothing to resume")
    config = load_config(run / SUBMITTED_CONFIG, overrides)
    result, steps = RunDirectory(run).read_result(), config.train.steps
    if from_step is not None:
        if config.study:
            raise UserError(f"--from-step {from_step}: {run} is a study of several nets; resume it as it is")
        if from_step >= steps:
            raise UserError(f"--from-step {from_step}: train.steps={steps} leaves nothing to train")
    elif result and result["step"] >= steps:
        raise UserError(f"{run}: finished at step {result['step']}; give train.steps=… to train longer")
    elif (saved := checkpoints(RunDirectory(run).checkpoints)) and checkpoint_step(saved[-1]) > steps:
        raise UserError(
            f"train.steps={steps}: {run} has a checkpoint of step {checkpoint_step(saved[-1])} already; "
            f"give train.steps={checkpoint_step(saved[-1])} or more, or --from-step"
        )
    values = dict(record.allocation)
    for key, other in (("gpus_per_node", "tasks_per_node"), ("tasks_per_node", "gpus_per_node")):
        if key in options and other not in options:
            values.pop(other, None)
    return record, config, read_allocation(None, values | options)


def _again(record: JobRecord, allocation: Allocation) -> JobRecord:
    values = vars(record) | {"cancelled": False, "allocation": allocation.model_dump()}
    return JobRecord(**values)
