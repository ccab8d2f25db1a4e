"""`translution bench`: how fast the parts are on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from launch.prepare import CORES
from trainer.errors import exit_code

app = typer.Typer(help="Measure how fast the parts are on this machine.", no_args_is_help=True)

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


@app.callback()
def _group() -> None:
    """Keeps the subcommand's name in the command line while there is only one."""


@app.command("data")
def data_command(
    path: Annotated[Path, typer.Argument(help="A folder made by translution prepare.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode images.")] = CORES,
    image_size: Annotated[int, typer.Option(min=1, help="Pixels of an image's side.")] = 224,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each measurement.")] = 10,
    debug: Debug = False,
) -> None:
    """Speed of loading prepared data.

    Images per second from shards, beside bare Pillow on the same files and as many processes; or
    tokens per second, and what share of a training step loading them takes.
    """

    def action() -> None:
        from trainer.data.text_throughput import bench_text, holds_text

        if holds_text(path):
            bench_text(path, seconds).show()
            return
        from trainer.data.image_throughput import bench_data

        bench_data(path, workers, image_size, seconds).show()

    raise typer.Exit(exit_code(action, debug))
