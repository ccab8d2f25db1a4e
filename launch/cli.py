"""The `translution` command. Heavy imports stay inside the commands, so that help is fast."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands import bench, plan, prepare, rehearse, results, runs, slurm, ssh, verify
from trainer.errors import exit_code

app = typer.Typer(
    help="Train and evaluate Translution networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(prepare.app, name="prepare")
slurm.register(app)
runs.register(app)
ssh.register(app)
results.register(app)
app.add_typer(bench.app, name="bench")
plan.register(app)
rehearse.register(app)
verify.register(app)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override the config, as in train.steps=600"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


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
        from trainer.config.arguments import debug_overrides, split_arguments

        nonlocal code
        path, changes = split_arguments(config, overrides or [])
        if resume:
            refuse_alive(resume)
        if debug:
            changes = debug_overrides(path, changes)
        count = processes or device_count()
        if count > 1:
            code = train_processes(path, changes, resume, debug, count, bind)
            return
        if debug:
            import torch

            torch.autograd.set_detect_anomaly(True)
        from trainer.train import train

        train(path, changes, resume, bind=bind)  # in this process, so that a debugger works

    raise typer.Exit(exit_code(action, debug) or code)


@app.command("evaluate")
def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(help="A run's or a study's directory.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Evaluate the newest checkpoint of RUN_DIR and print the table."""

    def action() -> None:
        from trainer.evaluation import evaluate_run

        evaluate_run(run_dir, overrides or [])

    raise typer.Exit(exit_code(action, debug))


@app.command("export")
def export_command(
    run_dir: Annotated[Path, typer.Argument(help="A run's directory.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    file_format: Annotated[
        Literal["reference", "safetensors"],
        typer.Option("--format", help="safetensors: our own names; reference: the public code's state dict."),
    ] = "safetensors",
    debug: Debug = False,
) -> None:
    """Write the weights of the newest checkpoint of RUN_DIR to one file."""

    def action() -> None:
        from launch.export import export

        export(run_dir, file_format, out)

    raise typer.Exit(exit_code(action, debug))


def main() -> None:
    """The console script."""
    app()
