"""`translution plan`: what a run will need, and the mesh that we recommend for a cluster."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import exit_code


def plan_command(
    config: Annotated[str | None, typer.Argument(help="YAML file; left out with --table.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ: parallel.offset=8"),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Number of machines; by default as many as the mesh needs.")
    ] = None,
    devices_per_node: Annotated[int, typer.Option(min=1, help="Devices per machine, one process each.")] = 8,
    card: Annotated[
        str, typer.Option(help="a100, h100, h200 or b200: for which the time of a step is counted.")
    ] = "h100",
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of one device; default: the card's.")
    ] = None,
    bandwidth: Annotated[
        str, typer.Option(metavar="SIZE", help="Bandwidth of a device inside its machine, per second.")
    ] = "300GB",
    network: Annotated[
        str, typer.Option(metavar="SIZE", help="Bandwidth of a device to other machines, per second.")
    ] = "25GB",
    teraflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="TFLOP/s of a device: time from FLOPs instead of the card's kernels."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="List the paper's nets and the cluster that each needs.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    """Parameters, memory, FLOPs and bytes sent of CONFIG, before it runs."""

    def action() -> None:
        from launch.plan import report as plan_report
        from launch.plan import table as plan_table
        from models.ops.cards import CARDS
        from parallel.errors import UserError
        from parallel.planner.recommend import Cluster
        from parallel.planner.units import parse_size

        if card not in CARDS:
            raise UserError(f"--card {card}: one of {', '.join(CARDS)} is needed")
        cluster = Cluster(
            nodes or 1,
            devices_per_node,
            parse_size(memory, "--memory") if memory else CARDS[card].memory,
            parse_size(bandwidth, "--bandwidth"),
            parse_size(network, "--network"),
        )
        if teraflops is not None:
            cluster = dataclasses.replace(cluster, card=None, speed=teraflops * 1e12)
        else:
            cluster = dataclasses.replace(cluster, card=CARDS[card])
        if table:
            plan_table.show(cluster, as_json)
            return
        if config is None:
            raise UserError("no config: name a file, as in configs/imagenet/b16_full.yaml, or give --table")
        plan_report.show(Path(config), overrides or [], cluster, nodes is not None, as_json)

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("plan")(plan_command)
