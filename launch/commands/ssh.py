"""Commands for clusters without a scheduler: launch over ssh, doctor (which also checks Slurm nodes)."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import exit_code

Port = Annotated[int, typer.Option("--master-port", help="Port on the first host where the ranks meet.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


def launch(
    hostfile: Annotated[Path, typer.Option(metavar="FILE", help="Lines like `node1 slots=8`.")],
    config: Annotated[str | None, typer.Argument(help="YAML file; may be left out with --resume.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Config overrides, for example train.steps=600"),
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="Resume this run or study.")] = None,
    port: Port = 29500,
    launcher: Annotated[str, typer.Option(help="DeepSpeed's launcher: pdsh, slurm, openmpi, …")] = "pdsh",
    force: Annotated[bool, typer.Option("--force", help="Start even if the hosts differ.")] = False,
    bind: Annotated[
        bool, typer.Option("--bind", help="Keep each process on the cores next to its device.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train on the hosts of a hostfile with DeepSpeed's launcher, after checking the hosts."""
    code = 0

    def action() -> None:
        from launch.slurm.runs.states import refuse_alive
        from launch.ssh.deepspeed_launcher import launch

        nonlocal code
        if resume:
            refuse_alive(resume)
        flags = [flag for flag, given in (("--bind", bind), ("--debug", debug)) if given]
        flags += ["--resume", str(resume)] if resume else []
        arguments = [*([config] if config else []), *(overrides or []), *flags]
        code = launch(hostfile, arguments, port, launcher, force)

    raise typer.Exit(exit_code(action, debug) or code)


def doctor(
    hostfile: Annotated[Path | None, typer.Option(metavar="FILE", help="Check these hosts over ssh.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Check nodes allocated by Slurm.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="With --slurm: number of nodes.")] = 2,
    partition: Annotated[str | None, typer.Option(help="With --slurm: the partition.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="With --slurm: GPUs to measure on each node.")
    ] = None,
    port: Port = 29511,
    debug: Debug = False,
) -> None:
    """Check the hosts' versions, clocks, directory, memory, network and speed, and name hosts that differ."""
    code = 0

    def action() -> None:
        from launch.ssh import doctor

        nonlocal code
        if hostfile:
            code = doctor.check_hosts(hostfile, port)
        elif slurm:
            code = doctor.check_slurm(nodes, partition, gpus_per_node)
        else:
            code = doctor.check_here()

    raise typer.Exit(exit_code(action, debug) or code)


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    for command in (launch, doctor):
        app.command(command.__name__)(command)
