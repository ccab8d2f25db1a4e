"""The `translution` command. Heavy imports stay inside the commands, so that help is fast."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands import bench, checkpoints, plan, prepare, rehearse, runs, slurm, ssh, verify
from launch.commands.local import config, net, results
from launch.commands.local import runs as local_runs
from trainer.errors import exit_code

app = typer.Typer(
    help="Train and evaluate Translution networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(prepare.app, name="prepare")
slurm.register(app)
runs.register(app)
checkpoints.register(app)
ssh.register(app)
results.register(app)
app.add_typer(bench.app, name="bench")
plan.register(app)
rehearse.register(app)
verify.register(app)
net.register(app)
config.register(app)
local_runs.register(app)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override the config, as in train.steps=600"),
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Load checkpoints without comparing their checksums.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from parallel.code_folder import code_version

        print(f"translution {code_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train and evaluate Translution networks."""


@app.command("train")
def train_command(
    config: Annotated[str | None, typer.Argument(help="YAML file; may be left out with --resume.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="Resume this run or study.")] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes; default: one per CUDA device."),
    ] = None,
    bind: Annotated[
        bool, typer.Option("--bind", help="Keep each process on the cores next to its device.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find the run by; may be repeated.")] = None,
    note: Annotated[str | None, typer.Option(help="What to remember of the run.")] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Check and plan everything; start and write nothing.")
    ] = False,
    picture: Annotated[
        bool, typer.Option("--picture", help="At the end draw curves and results, and say what to do next.")
    ] = False,
    no_verify: NoVerify = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="A few steps, anomaly detection, no data workers, full tracebacks."),
    ] = False,
) -> None:
    """Train the net, or the study of nets, that CONFIG describes."""
    code = 0

    def action() -> None:
        from launch.local import device_count, train_processes
        from launch.slurm.runs.states import refuse_alive
        from trainer.config.arguments import debug_overrides, labels, split_arguments

        nonlocal code
        path, changes = split_arguments(config, [*(overrides or []), *_unverified(no_verify)])
        changes += labels(tag or [], note)
        if resume:
            refuse_alive(resume)
        if debug:
            changes = debug_overrides(path, changes)
        count = processes or device_count()
        if dry:
            from launch.dry_run import dry_run

            dry_run(path, changes, resume, count)
            return
        run = resume
        if picture:
            from launch.picture import name_run

            run, changes = name_run(path, changes, resume)
        if count > 1:
            code = train_processes(path, changes, resume, debug, count, bind)
        else:
            if debug:
                import torch

                torch.autograd.set_detect_anomaly(True)
            from trainer.train import train

            train(path, changes, resume, bind=bind)  # in this process, so that a debugger works
        if picture and run and not code:
            from launch.picture import show_next

            show_next(run)

    raise typer.Exit(exit_code(action, debug) or code)


@app.command("evaluate")
def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(help="A run's or a study's directory.")],
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the net as the config's parallel section says.")
    ] = 1,
    no_verify: NoVerify = False,
    debug: Debug = False,
) -> None:
    """Evaluate the newest checkpoint of RUN_DIR and print the table; reads weights only."""
    code = 0

    def action() -> None:
        from launch.local import run_processes
        from trainer.evaluation import evaluate_run

        nonlocal code
        changes = [*(overrides or []), *_unverified(no_verify)]
        if processes > 1:
            given = [*changes, "--evaluate", str(run_dir), *(["--debug"] if debug else [])]
            code = run_processes(given, processes)
            return
        evaluate_run(run_dir, changes)

    raise typer.Exit(exit_code(action, debug) or code)


@app.command("export")
def export_command(
    run_dir: Annotated[Path, typer.Argument(help="A run's directory.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="The file to write, or a new folder.")],
    file_format: Annotated[
        Literal["reference", "safetensors"],
        typer.Option("--format", help="safetensors: our own names; reference: the public code's state dict."),
    ] = "safetensors",
    no_verify: NoVerify = False,
    debug: Debug = False,
) -> None:
    """Write the weights of the newest checkpoint of RUN_DIR to one file."""

    def action() -> None:
        from launch.export import export

        export(run_dir, file_format, out, not no_verify)

    raise typer.Exit(exit_code(action, debug))


def _unverified(no_verify: bool) -> list[str]:
    return ["train.verify_checkpoints=false"] if no_verify else []


def main() -> None:
    """The console script."""
    app()
