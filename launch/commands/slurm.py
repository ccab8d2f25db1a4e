"""`translution submit`, and the options that `translution resume` shares with it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import exit_code

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Config overrides, for example train.steps=600"),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the run directories.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]
Nodes = Annotated[int | None, typer.Option(help="Number of nodes.")]
GpusPerNode = Annotated[int | None, typer.Option(help="GPUs per node, one process each.")]
TasksPerNode = Annotated[int | None, typer.Option(help="Processes per node, without GPUs.")]
CpusPerTask = Annotated[int | None, typer.Option(help="Cores per process.")]
MemGb = Annotated[float | None, typer.Option(help="Memory per node, in GB.")]
DeviceMemoryGb = Annotated[
    float | None, typer.Option(help="Memory of a GPU, in GB, where Slurm's GRES type does not tell.")
]
Partition = Annotated[str | None, typer.Option(help="Slurm partition.")]
Time = Annotated[str | None, typer.Option(help="Time limit in Slurm's notation: 90, 12:00:00, 2-00:00:00.")]
Account = Annotated[str | None, typer.Option(help="Slurm account.")]
Qos = Annotated[str | None, typer.Option(help="Slurm quality of service.")]
Constraint = Annotated[str | None, typer.Option(help="Features the nodes must have.")]
Exclude = Annotated[str | None, typer.Option(metavar="NODES", help="Nodes to leave out, as in node[3-4].")]
Nodelist = Annotated[str | None, typer.Option(metavar="NODES", help="Nodes that must be among the job's.")]
Sbatch = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Another option of sbatch, as in reservation=night; repeatable."),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(metavar="ADDRESS", help="Mail address or webhook URL told of the end; may be repeated."),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(metavar="CMD", help="Shell command to run before training; may be repeated."),
]
SignalDelay = Annotated[
    int | None, typer.Option(help="Seconds between the signal to save and the end of the time limit.")
]
MaxRequeues = Annotated[int | None, typer.Option(help="How often the job may restart.")]
Bind = Annotated[
    bool | None, typer.Option("--bind/--no-bind", help="Keep each process on the cores next to its device.")
]
Check = Annotated[
    bool | None,
    typer.Option("--check/--no-check", help="Check the hosts before each start (several nodes or GPUs)."),
]


def submit(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file.")],
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Defaults for the options below: configs/cluster/….yaml"),
    ] = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    tasks_per_node: TasksPerNode = None,
    cpus_per_task: CpusPerTask = None,
    mem_gb: MemGb = None,
    device_memory_gb: DeviceMemoryGb = None,
    partition: Partition = None,
    time: Time = None,
    account: Account = None,
    qos: Qos = None,
    constraint: Constraint = None,
    exclude: Exclude = None,
    nodelist: Nodelist = None,
    sbatch: Sbatch = None,
    notify: Notify = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Image for pyxis, or a .sif file for apptainer.")
    ] = None,
    setup: Setup = None,
    signal_delay: SignalDelay = None,
    max_requeues: MaxRequeues = None,
    bind: Bind = None,
    check: Check = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="One run per value; may be repeated.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="How many runs of a sweep run at the same time.")
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Start after this run, or sweep, has finished; may be repeated."),
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluate every N steps, in a separate job.")
    ] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the batch script.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Submit although memory or data seem to be missing.")
    ] = False,
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
            read_allocation(cluster, allocation_options(context)),
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


def allocation_options(context: typer.Context) -> dict[str, Any]:
    """Those options given on the command line that are fields of an Allocation."""
    from launch.slurm.allocation import Allocation

    given = {key: value for key, value in context.params.items() if value not in (None, [], ())}
    return {key: value for key, value in given.items() if key in Allocation.model_fields}


def register(app: typer.Typer) -> None:
    """Add `submit` to the `translution` command."""
    app.command("submit")(submit)
