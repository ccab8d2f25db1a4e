"""`translution config`: what a config means, and what it may say."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import exit_code


def config_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG [KEY=VALUE]... | diff A B", help="A YAML file; diff: files or runs."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of config files, for editors.")
    ] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="With --schema: of cluster files.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Print a Markdown page of all keys.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    """Print the resolved CONFIG with the origin of every value, or what differs between two."""

    def action() -> None:
        from parallel.errors import UserError

        given = words or []
        if sum((schema, keys, bool(given))) != 1 or (cluster and not schema):
            raise UserError("config: needs one of a file, diff A B, --schema [--cluster] and --keys")
        if keys:
            from trainer.config.keys.table import key_page

            print(key_page(), end="")
        elif schema:
            import json

            from launch.slurm.allocation import Allocation
            from trainer.config.keys.schema import file_schema, run_schema

            print(json.dumps(file_schema(Allocation) if cluster else run_schema(), indent=1))
        elif given[0] == "diff":
            from trainer.config.shown import config_difference

            if len(given) != 3:
                raise UserError(f"config diff: needs two files or runs, {len(given) - 1} given")
            config_difference(Path(given[1]), Path(given[2])).show()
        else:
            from trainer.config.shown import shown_config

            print(shown_config(Path(given[0]), given[1:]), end="")

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Add the command to `translution`."""
    app.command("config")(config_command)
