"""Commands for checkpoints: inspect, convert-checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import exit_code

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


def inspect_command(
    path: Annotated[Path, typer.Argument(help="A run's directory, or one checkpoint in it.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte.")] = False,
    debug: Debug = False,
) -> None:
    """List checkpoints: steps, tensors, shapes, who wrote what, and whether they are whole."""

    def action() -> None:
        from launch.checkpoint.inspect import inspect

        for line in inspect(path, verify):
            print(line)

    raise typer.Exit(exit_code(action, debug))


def convert_command(
    run_dir: Annotated[Path, typer.Argument(help="A run's or a study's directory.")], debug: Debug = False
) -> None:
    """Write the checkpoints of an older version (step-N.pt) anew; the old files stay."""

    def action() -> None:
        from launch.checkpoint.convert import convert

        for path in convert(run_dir):
            print(f"wrote {path}; {path.name}.pt and its parts can be deleted")

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    app.command("inspect")(inspect_command)
    app.command("convert-checkpoint")(convert_command)
