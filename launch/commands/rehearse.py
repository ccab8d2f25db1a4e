"""`translution rehearse`: the real step of some ranks of a run, without devices, before it is queued."""

from pathlib import Path
from typing import Annotated

import typer

from launch.plan import options
from trainer.errors import exit_code


def rehearse_command(
    config: Annotated[str, typer.Argument(help="YAML file.")],
    overrides: options.Overrides = None,
    nodes: options.Nodes = None,
    devices_per_node: options.DevicesPerNode = 8,
    ranks: Annotated[
        str,
        typer.Option(help="Numbers, fullest, busiest, or all-distinct, whose collectives are compared."),
    ] = "fullest",
    card: options.CardName = "h100",
    memory: options.DeviceMemory = None,
    bandwidth: options.Bandwidth = options.NVLINK,
    network: options.Network = options.NETWORK,
    scale: Annotated[
        str | None, typer.Option(metavar="1,8,64", help="Seconds of a step and days on so many devices.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="With --scale: write the table.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="With --scale: draw it.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Give up after so long.")] = 10,
    all_collectives: Annotated[
        bool, typer.Option("--collectives", help="List every collective of every rank.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    """Run the real training step of some ranks of CONFIG on tensors without numbers.

    Shows memory, FLOPs and collectives, in seconds and without a device. Ends with an error where a rank
    does not fit, where ranks would wait for each other, or where one holds what it should not.
    """

    def action() -> None:
        from launch.rehearse import scale as scaling
        from launch.rehearse.report import show
        from launch.rehearse.run import rehearse_config
        from trainer.config.run import load_config

        cluster = options.cluster_of(nodes, devices_per_node, card, memory, bandwidth, network)
        run = load_config(Path(config), overrides or [])
        if scale is not None:
            rows = scaling.scale(run, cluster, scaling.parse_devices(scale), 60 * minutes)
            scaling.show(run, cluster, rows)
            if csv:
                scaling.write_csv(rows, csv)
            if plot:
                scaling.plot(run, rows, plot)
            return
        show(rehearse_config(run, cluster, nodes is not None, ranks, 60 * minutes), as_json, all_collectives)

    raise typer.Exit(exit_code(action, debug))


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("rehearse")(rehearse_command)
