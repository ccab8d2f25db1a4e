"""Commands to try a net: predict, generate."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.errors import exit_code

Net = Annotated[
    Path, typer.Argument(metavar="RUN_OR_EXPORT", help="A run's directory, or a file of translution export.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]


def predict_command(
    net: Net,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files of any format.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes, one on each line.")
    ] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Classify image files with a trained net."""

    def action() -> None:
        from launch.inference.predict import predict

        predict(net, images, top, classes, device).show()

    raise typer.Exit(exit_code(action, debug))


def generate_command(
    net: Net,
    prompt: Annotated[str, typer.Option(help="Text to continue; by default a document begins.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="How many to generate.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most probable token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw among the K most probable; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    bpe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="GPT-2's ranks as a tiktoken file; default: download."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute all tokens again for each new one, to compare.")
    ] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Continue a text with a trained language net."""

    def action() -> None:
        from launch.inference.generate import generate_text

        generate_text(net, prompt, tokens, temperature, top_k, seed, bpe, device, not no_cache)

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    app.command("predict")(predict_command)
    app.command("generate")(generate_command)
