"""`translution prepare`: turn downloaded data into the shards that training reads."""

import os
from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import exit_code

app = typer.Typer(help="Turn downloaded data into the shards that training reads.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Folder for the shards; run the command again to resume.")]
Workers = Annotated[int, typer.Option(min=0, help="Worker processes; 0: work in this one.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]

# Slurm may give a process fewer cores than the machine has; macOS cannot tell.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command("openwebtext")
def openwebtext_command(
    source: Annotated[
        Path, typer.Option("--input", help="Folder of .txt, .jsonl (also .gz), .parquet or .arrow files.")
    ],
    out: Out,
    bpe: Annotated[
        Path | None, typer.Option(help="Local tiktoken file of GPT-2's ranks; default: download it.")
    ] = None,
    workers: Workers = CORES,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens per shard, 2 bytes each.")] = 100_000_000,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the documents kept for validation.")
    ] = 0.0005,
    debug: Debug = False,
) -> None:
    """Encode documents with GPT-2's BPE into shards of tokens with a manifest."""

    def action() -> None:
        from trainer.data.text.prepare import prepare, summary

        print(summary(prepare(source, out, bpe, workers, shard_tokens, validation_share)), flush=True)

    raise typer.Exit(exit_code(action, debug))


@app.command("imagenet")
def imagenet_command(
    source: Annotated[
        Path, typer.Option("--input", help="Folder with a folder of images per class, such as n01440764/.")
    ],
    out: Out,
    resize_short: Annotated[
        int | None,
        typer.Option(min=1, help="Shrink images to this short side in pixels; default: keep all sizes."),
    ] = None,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="Approximate size of a shard in MiB.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle of all images.")] = 0,
    workers: Workers = CORES,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Class names in the order of their labels, one per line."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write class folders of images to webdataset shards with a manifest."""

    def action() -> None:
        from trainer.data.images.prepare.prepare import prepare, summary

        print(summary(prepare(source, out, resize_short, shard_mb, seed, workers, classes)), flush=True)

    raise typer.Exit(exit_code(action, debug))
