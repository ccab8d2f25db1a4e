"""Commands for submitted runs: jobs, logs, cancel, resume, sweep. A RUN is what selection.py understands."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands import slurm as options
from trainer.errors import exit_code

_RUN = "A run: directory, job id, name or its beginning; or a sweep: folder, or array id."
Words = Annotated[list[str], typer.Argument(metavar="RUN...", help=_RUN)]


def jobs(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until all runs have ended.")] = False,
    state: Annotated[
        str | None, typer.Option(metavar="STATE,...", help="Only runs in these states, as in failed,running.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only runs whose names contain or match this.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only runs submitted since: 12h, 2d, 2026-01-31.")
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="All columns, whatever the terminal's width.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
    runs: options.Runs = Path("runs"),
    debug: options.Debug = False,
) -> None:
    """List the submitted runs, newest first: state, step, loss, time to end, and why one failed or waits."""

    def action() -> None:
        from launch.slurm.watch.jobs import read_filter, show_jobs

        show_jobs(runs, read_filter(state, name, since), watch, wide, as_json)

    raise typer.Exit(exit_code(action, debug))


def logs(
    run: Words,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    rank: Annotated[
        str,
        typer.Option(metavar="N|all", help="The rank to print, or all, each line after its rank."),
    ] = "0",
    tail: Annotated[
        int | None,
        typer.Option("--tail", min=0, metavar="N", help="Only the newest job, from its last N lines."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Also lines of srun and submitit.")] = False,
    runs: options.Runs = Path("runs"),
    debug: options.Debug = False,
) -> None:
    """Print the output of a run's jobs, and which rank says why it failed."""

    def action() -> None:
        from launch.slurm.runs.selection import select_runs
        from launch.slurm.watch.logs import show_logs
        from parallel.errors import UserError

        if rank != "all" and not rank.isdigit():
            raise UserError(f"--rank {rank}: expected a number, or all")
        chosen = None if rank == "all" else int(rank)
        show_logs(select_runs(run, runs), chosen, follow, tail, raw)

    raise typer.Exit(exit_code(action, debug))


def cancel(run: Words, runs: options.Runs = Path("runs"), debug: options.Debug = False) -> None:
    """Cancel the jobs of runs; each saves a checkpoint first if the cluster's settings leave it time to."""

    def action() -> None:
        from launch.slurm.runs.cancel import cancel
        from launch.slurm.runs.selection import select_runs

        print("\n".join(cancel(select_runs(run, runs))))

    raise typer.Exit(exit_code(action, debug))


def sweep(run: Words, runs: options.Runs = Path("runs"), debug: options.Debug = False) -> None:
    """One table of the results of a sweep, or of any runs; the best value of each metric is marked."""

    def action() -> None:
        from launch.slurm.runs.selection import select_runs
        from launch.slurm.watch.sweep import sweep_table

        sweep_table(select_runs(run, runs)).show()

    raise typer.Exit(exit_code(action, debug))


def resume(
    context: typer.Context,
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [KEY=VALUE]...", help=f"{_RUN} Then config overrides."),
    ],
    from_step: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Resume from the checkpoint of this step.")
    ] = None,
    nodes: options.Nodes = None,
    gpus_per_node: options.GpusPerNode = None,
    tasks_per_node: options.TasksPerNode = None,
    cpus_per_task: options.CpusPerTask = None,
    mem_gb: options.MemGb = None,
    device_memory_gb: options.DeviceMemoryGb = None,
    partition: options.Partition = None,
    time: options.Time = None,
    account: options.Account = None,
    qos: options.Qos = None,
    constraint: options.Constraint = None,
    exclude: options.Exclude = None,
    nodelist: options.Nodelist = None,
    sbatch: options.Sbatch = None,
    notify: options.Notify = None,
    setup: options.Setup = None,
    signal_delay: options.SignalDelay = None,
    max_requeues: options.MaxRequeues = None,
    bind: options.Bind = None,
    check: options.Check = None,
    force: Annotated[
        bool, typer.Option("--force", help="Submit although memory or data seem to be missing.")
    ] = False,
    runs: options.Runs = Path("runs"),
    debug: options.Debug = False,
) -> None:
    """Submit again runs that ended before their last step; options replace those they were submitted with."""

    def action() -> None:
        from launch.slurm.runs.resume import resume
        from launch.slurm.runs.selection import select_runs, split_overrides
        from parallel.errors import UserError

        words, overrides = split_overrides(run)
        if not words:
            raise UserError(f"{' '.join(run)}: names no run to resume")
        resume(select_runs(words, runs), options.allocation_options(context), overrides, from_step, force)

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    for command in (jobs, logs, cancel, resume, sweep):
        app.command(command.__name__)(command)
