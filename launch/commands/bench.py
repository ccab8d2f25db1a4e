"""`translution bench`: measures parts of the system on this machine. `benchmarks/README.md` lists them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands.prepare import CORES
from parallel.errors import UserError
from trainer.errors import exit_code

app = typer.Typer(help="Measure speed, memory and traffic on this machine.", no_args_is_help=True)

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


@app.command("data")
def data_command(
    path: Annotated[Path, typer.Argument(help="A folder made by translution prepare.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode images.")] = CORES,
    image_size: Annotated[int, typer.Option(min=1, help="Pixels of an image's side.")] = 224,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each measurement.")] = 5,
    debug: Debug = False,
) -> None:
    """Speed of loading prepared data.

    Images: per second from shards, next to plain Pillow on the same files with as many processes.
    Text: tokens per second, and the share of a training step that loading takes.
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
        typer.Option(help="7x7, 14x14, 4x4, causal or narrow, repeatable; default: all."),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="shared or alpha: layers with shared entries, or α, against self-attention."),
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
        if shapes is not None:
            if shape or compiled or device != "cpu" or precision != "fp32":
                raise UserError("--shapes: goes with --repeat and --json only, fp32 on the CPU")
            from launch.bench.layers import bench_layers, show_layers

            show_layers(bench_layers(shapes, repeat), as_json)
            return
        from launch.bench.op import bench_op, show

        show(bench_op(shape or [], repeat, compiled, device, precision), as_json)

    raise typer.Exit(exit_code(action, debug))


@app.command("step")
def step_command(
    config: Annotated[
        str | None, typer.Argument(help="YAML file of a net; default: a vision net and a GPT.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ: train.batch=8"),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions; the median is shown.")] = 5,
    card: Annotated[
        str | None, typer.Option(help="Count for a100, h100, h200 or b200 instead of measuring here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Time of a whole training step over its operator and dense products alone, with random data."""

    def action() -> None:
        from launch.bench.step.rows import bench_step, usual_nets
        from launch.bench.step.show import show
        from trainer.config.arguments import split_arguments
        from trainer.config.run import load_config

        path, changes = split_arguments(config, overrides or [])
        if path is None and changes:
            raise UserError(f"{changes[0]}: overrides a config; name its file first")
        nets = [load_config(path, changes)] if path else usual_nets(card)
        show(bench_step(nets, repeat, card), as_json)

    raise typer.Exit(exit_code(action, debug))


@app.command("kernels")
def kernels_command(
    card: Annotated[str, typer.Option(help="a100, h100, h200 or b200.")] = "h100",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Kernels, bytes and time of a layer on a card, counted on this machine without one."""

    def action() -> None:
        from launch.bench.kernels.rows import bench_kernels
        from launch.bench.kernels.show import show

        show(bench_kernels(card), as_json)

    raise typer.Exit(exit_code(action, debug))


@app.command("parallel")
def parallel_command(
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions; the median is shown.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Bank sizes, bytes sent and times of offset 1, offset 2 and plain ZeRO-3, in two processes."""

    def action() -> None:
        from launch.bench.parallel import bench_parallel, show

        show(bench_parallel(repeat), as_json)

    raise typer.Exit(exit_code(action, debug))


@app.command("mixers")
def mixers_command(
    mixer: Annotated[
        list[str] | None, typer.Option(help="A row of the table, repeatable; default: all.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions; the median is shown.")] = 5,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="One sample of so many tokens, repeatable, in place of the usual shapes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Speed and memory of a layer of every mixer and position beside self-attention, on one thread."""

    def action() -> None:
        from launch.bench.mixers import bench_mixers, show_mixers

        show_mixers(bench_mixers(mixer or [], repeat, tokens), as_json)

    raise typer.Exit(exit_code(action, debug))


@app.command("gathered")
def gathered_command(
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; the median is shown.")] = 2,
    debug: Debug = False,
) -> None:
    """Speed of the streamed layer against the paper's equations over gathered weights."""

    def action() -> None:
        from launch.bench.gathered import bench_gathered

        bench_gathered(repeat).show()

    raise typer.Exit(exit_code(action, debug))


@app.command("busy")
def busy_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run to time.")] = Path(
        "configs/debug.yaml"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 20,
    loops: Annotated[int, typer.Option(min=1, help="Busy loops to run next to it.")] = CORES,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each kind; the median is shown.")] = 3,
    debug: Debug = False,
) -> None:
    """Time of a short run on a quiet machine and beside busy loops, with both waiting policies."""

    def action() -> None:
        from launch.bench.busy import bench_busy

        overrides = ["study=null", "device=cpu", f"train.steps={steps}"]
        bench_busy(config, overrides, loops, repeat).show()

    raise typer.Exit(exit_code(action, debug))
