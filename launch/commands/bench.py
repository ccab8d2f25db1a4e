"""`translution bench`: how fast the parts are on this machine."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands.prepare import CORES
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
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each of the measurements.")] = 5,
    debug: Debug = False,
) -> None:
    """Speed of loading prepared data.

    Images per second from shards, beside bare Pillow on the same files and as many processes; or
    tokens per second, and what share of a training step loading them takes.
    """

    def action() -> None:
        from launch.bench.text_data import bench_text, holds_text

        if holds_text(path):
            bench_text(path, seconds).show()
            return
        from launch.bench.image_data import bench_data

        bench_data(path, workers, image_size, seconds).show()

    raise typer.Exit(exit_code(action, debug))


@app.command("op")
def op_command(
    shape: Annotated[
        list[str] | None,
        typer.Option(help="7x7, 14x14, 4x4, causal or narrow, as often as you like; else all."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions; the median is shown.")] = 5,
    compiled: Annotated[bool, typer.Option("--compile", help="Fuse the element-wise stage.")] = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to measure.")] = "cpu",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16: under autocast.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Speed of the operator against a matrix product's, and its memory, on one thread."""

    def action() -> None:
        from launch.bench.op import bench_op, show

        show(bench_op(shape or [], repeat, compiled, device, precision), as_json)

    raise typer.Exit(exit_code(action, debug))


@app.command("parallel")
def parallel_command(
    repeat: Annotated[int, typer.Option(min=1, help="Turns; the median is shown.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Banks, bytes sent and times of offset 1, offset 2 and ZeRO-3 alone, in two processes."""

    def action() -> None:
        from launch.bench.parallel import bench_parallel, show

        show(bench_parallel(repeat), as_json)

    raise typer.Exit(exit_code(action, debug))
