"""The commands for a Slurm cluster: submit, jobs, logs, cancel, resume."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import exit_code

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ: train.steps=600"),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A submitted run's directory.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the run directories are.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]
Nodes = Annotated[int | None, typer.Option(help="Number of nodes.")]
Time = Annotated[str | None, typer.Option(help="Time limit: minutes, or [days-]hours:minutes:seconds.")]
Partition = Annotated[str | None, typer.Option(help="Slurm partition.")]
SignalDelay = Annotated[int | None, typer.Option(help="Seconds between the warning and the end of the time.")]
MaxRequeues = Annotated[int | None, typer.Option(help="How often the job may start again.")]


def submit(
    config: Annotated[str, typer.Argument(help="YAML file.")],
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Defaults of the options below: configs/cluster/….yaml"),
    ] = None,
    nodes: Nodes = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs per node, one process each.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="Processes per node without GPUs.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores per process.")] = None,
    mem_gb: Annotated[float | None, typer.Option(help="Memory per node, in GB.")] = None,
    partition: Partition = None,
    time: Time = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.")] = None,
    qos: Annotated[str | None, typer.Option(help="Slurm quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features that the nodes must have.")] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Image for pyxis, or a .sif file for apptainer.")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(metavar="CMD", help="Shell line before the start; may be repeated.")
    ] = None,
    signal_delay: SignalDelay = None,
    max_requeues: MaxRequeues = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="One run per value; may be repeated.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="How many runs of a sweep run at a time.")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start when this run has finished well.")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluate every N steps, in a job of its own.")
    ] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Submit what does not fit into memory.")] = False,
    debug: Debug = False,
) -> None:
    """Train what CONFIG describes as a Slurm job that survives its time limit and lost nodes."""
    options = {
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "tasks_per_node": tasks_per_node,
        "cpus_per_task": cpus_per_task,
        "mem_gb": mem_gb,
        "partition": partition,
        "time": time,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "container": container,
        "setup": setup,
        "signal_delay": signal_delay,
        "max_requeues": max_requeues,
    }

    def action() -> None:
        from launch.slurm.allocation import read_allocation
        from launch.slurm.submit import submit

        submit(
            config,
            overrides or [],
            read_allocation(cluster, options),
            runs,
            sweep or [],
            parallel,
            after,
            evaluate_every,
            force,
            dry_run,
        )

    raise typer.Exit(exit_code(action, debug))


def jobs(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until every run has ended.")] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Show the submitted runs: state, nodes, step, loss, restarts, time left, directory."""

    def action() -> None:
        from launch.slurm.runs.jobs import show_jobs

        show_jobs(runs, watch)

    raise typer.Exit(exit_code(action, debug))


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="Which process's output.")] = 0,
    debug: Debug = False,
) -> None:
    """Print what a run's jobs have printed."""

    def action() -> None:
        from launch.slurm.runs.logs import show_logs

        show_logs(run, rank, follow)

    raise typer.Exit(exit_code(action, debug))


def cancel(run: Run, debug: Debug = False) -> None:
    """End a run's job; it saves first when its cluster leaves it the time."""

    def action() -> None:
        from launch.slurm.runs.cancel import cancel

        print(cancel(run))

    raise typer.Exit(exit_code(action, debug))


def resume(
    run: Run,
    overrides: Overrides = None,
    nodes: Nodes = None,
    time: Time = None,
    partition: Partition = None,
    signal_delay: SignalDelay = None,
    max_requeues: MaxRequeues = None,
    debug: Debug = False,
) -> None:
    """Submit a run again that ended before its last step."""
    options = {
        "nodes": nodes,
        "time": time,
        "partition": partition,
        "signal_delay": signal_delay,
        "max_requeues": max_requeues,
    }

    def action() -> None:
        from launch.slurm.submit import resume

        resume(run, options, overrides or [])

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    for command in (submit, jobs, logs, cancel, resume):
        app.command(command.__name__)(command)
