"""Commands for a Slurm cluster: submit, jobs, logs, cancel, resume."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import exit_code

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Config overrides, for example train.steps=600"),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a submitted run.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the run directories.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]
Nodes = Annotated[int | None, typer.Option(help="Number of nodes.")]
Time = Annotated[str | None, typer.Option(help="Time limit in Slurm's notation: 90, 12:00:00, 2-00:00:00.")]
Partition = Annotated[str | None, typer.Option(help="Slurm partition.")]
SignalDelay = Annotated[
    int | None, typer.Option(help="Seconds between the signal to save and the end of the time limit.")
]
MaxRequeues = Annotated[int | None, typer.Option(help="How often the job may restart.")]


def submit(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file.")],
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Defaults for the options below: configs/cluster/….yaml"),
    ] = None,
    nodes: Nodes = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs per node, one process each.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="Processes per node, without GPUs.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores per process.")] = None,
    mem_gb: Annotated[float | None, typer.Option(help="Memory per node, in GB.")] = None,
    partition: Partition = None,
    time: Time = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.")] = None,
    qos: Annotated[str | None, typer.Option(help="Slurm quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features the nodes must have.")] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Image for pyxis, or a .sif file for apptainer.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(metavar="CMD", help="Shell command to run before training; may be repeated."),
    ] = None,
    signal_delay: SignalDelay = None,
    max_requeues: MaxRequeues = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="One run per value; may be repeated.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="How many runs of a sweep run at the same time.")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start after this run has finished successfully.")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluate every N steps, in a separate job.")
    ] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the batch script.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Submit a job too large for its memory.")] = False,
    no_rehearsal: Annotated[
        bool, typer.Option("--no-rehearsal", help="Submit without running a rank's step here first.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train CONFIG as a Slurm job that restarts by itself after its time limit or the loss of a node."""

    def action() -> None:
        from launch.slurm.allocation import read_allocation
        from launch.slurm.submit import submit

        submit(
            config,
            overrides or [],
            read_allocation(cluster, _allocation_options(context)),
            runs,
            sweep or [],
            parallel,
            after,
            evaluate_every,
            force,
            dry_run,
            not no_rehearsal,
        )

    raise typer.Exit(exit_code(action, debug))


def jobs(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until all runs have ended.")] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """List the submitted runs: job, state, nodes, step, loss, restarts, time left, directory."""

    def action() -> None:
        from launch.slurm.runs.jobs import show_jobs

        show_jobs(runs, watch)

    raise typer.Exit(exit_code(action, debug))


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="The rank whose output to print.")] = 0,
    debug: Debug = False,
) -> None:
    """Print the output of a run's jobs."""

    def action() -> None:
        from launch.slurm.runs.logs import show_logs

        show_logs(run, rank, follow)

    raise typer.Exit(exit_code(action, debug))


def cancel(run: Run, debug: Debug = False) -> None:
    """Cancel a run's job; it saves a checkpoint first if the cluster's settings leave it time to."""

    def action() -> None:
        from launch.slurm.runs.jobs import cancel

        print(cancel(run))

    raise typer.Exit(exit_code(action, debug))


def resume(
    context: typer.Context,
    run: Run,
    overrides: Overrides = None,
    nodes: Nodes = None,
    time: Time = None,
    partition: Partition = None,
    signal_delay: SignalDelay = None,
    max_requeues: MaxRequeues = None,
    debug: Debug = False,
) -> None:
    """Submit again a run that ended before its last step."""

    def action() -> None:
        from launch.slurm.submit import resume

        resume(run, _allocation_options(context), overrides or [])

    raise typer.Exit(exit_code(action, debug))


def _allocation_options(context: typer.Context) -> dict[str, Any]:
    """Those options given on the command line that are fields of an Allocation."""
    from launch.slurm.allocation import Allocation

    given = {key: value for key, value in context.params.items() if value not in (None, [], ())}
    return {key: value for key, value in given.items() if key in Allocation.model_fields}


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    for command in (submit, jobs, logs, cancel, resume):
        app.command(command.__name__)(command)
