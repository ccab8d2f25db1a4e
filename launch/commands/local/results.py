"""Commands for results: compare trains nets under one budget and makes a table, show draws runs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launch.commands import slurm as options
from trainer.errors import exit_code


def compare(
    context: typer.Context,
    config: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="A YAML file per net, or one of them all."),
    ] = None,
    match: Annotated[
        Literal["params", "flops", "time"] | None,
        typer.Option(help="Scale the nets until this agrees with the first one's within 2 %."),
    ] = None,
    scale: Annotated[
        Literal["width", "depth"] | None, typer.Option(help="What to scale; default: width.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="NET", help="Match this net; default: the first.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="NET", help="Leave this net as it is; may be repeated.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="steps=N", help="Of every net: steps=, samples=, flops= or seconds=."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of each net; default: the config's, else 3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory of the comparison.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Train what is missing, and write the table again.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="How many nets train at the same time.")] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes of each net; default: one per CUDA device.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit an array with a job for each net.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the nets; with --slurm also the batch script.")
    ] = False,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --slurm: defaults for the options below."),
    ] = None,
    nodes: options.Nodes = None,
    gpus_per_node: options.GpusPerNode = None,
    tasks_per_node: options.TasksPerNode = None,
    cpus_per_task: options.CpusPerTask = None,
    mem_gb: options.MemGb = None,
    partition: options.Partition = None,
    time: options.Time = None,
    account: options.Account = None,
    qos: options.Qos = None,
    debug: options.Debug = False,
) -> None:
    """Train nets under one budget, scaled to equal size if asked, and write one table and plot."""

    def action() -> None:
        from launch.compare import Rules, compare, submit_comparison
        from launch.local import device_count

        files, overrides = _split(config or [])
        rules = Rules(_rules(match, scale, reference, keep, budget), seeds)
        if slurm:
            from launch.slurm.allocation import read_allocation

            allocation = read_allocation(cluster, options.allocation_options(context))
            submit_comparison(files, overrides, rules, out, resume, allocation, parallel, dry_run)
            return
        compare(files, overrides, rules, out, resume, parallel, processes or device_count(), dry_run)

    raise typer.Exit(exit_code(action, debug))


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Config files, and overrides."""
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    return [word for word in words if word not in overrides], overrides


def _rules(
    match: str | None, scale: str | None, reference: str | None, keep: list[str] | None, budget: str | None
) -> dict[str, Any]:
    """The keys of a config's `compare` section that options replace."""
    from parallel.errors import UserError
    from trainer.config.compare import BudgetConfig

    found: dict[str, Any] = {"match": match, "scale": scale, "reference": reference, "keep": keep or None}
    if budget:
        key, equals, value = budget.partition("=")
        if not equals or key not in BudgetConfig.model_fields:
            kinds = ", ".join(f"{name}=…" for name in BudgetConfig.model_fields)
            raise UserError(f"--budget {budget}: one of {kinds} is needed")
        found["budget"] = {key: value}
    return {key: value for key, value in found.items() if value is not None}


def show(
    run_dir: Annotated[list[Path], typer.Argument(help="A run's directory, or several.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures and index.html go.")],
    layer: Annotated[int | None, typer.Option(min=0, help="Only this layer.")] = None,
    head: Annotated[int | None, typer.Option(min=0, help="Only this head.")] = None,
    debug: options.Debug = False,
) -> None:
    """Draw runs: banks by offset, attention, loss, load of ranks; PNG files and a page of them all."""

    def action() -> None:
        from trainer.pictures.show import show

        written = show(run_dir, out, layer, head)
        print(f"wrote {len(written) - 1} pictures and {written[-1]}")

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    app.command("compare")(compare)
    app.command("show")(show)
