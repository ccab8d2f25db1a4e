"""`translution plan`: what a run will need, and the mesh that we recommend for a cluster."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from launch.plan import options
from trainer.errors import exit_code


def plan_command(
    config: Annotated[str | None, typer.Argument(help="YAML file; left out with --table.")] = None,
    overrides: options.Overrides = None,
    nodes: options.Nodes = None,
    devices_per_node: options.DevicesPerNode = 8,
    card: options.CardName = "h100",
    memory: options.DeviceMemory = None,
    bandwidth: options.Bandwidth = options.NVLINK,
    network: options.Network = options.NETWORK,
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
        from parallel.errors import UserError

        cluster = options.cluster_of(nodes, devices_per_node, card, memory, bandwidth, network)
        if teraflops is not None:
            cluster = dataclasses.replace(cluster, card=None, speed=teraflops * 1e12)
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
