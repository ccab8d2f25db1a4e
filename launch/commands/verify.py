"""`translution verify`: checks that a net trains to the same numbers on every mesh and engine."""

from typing import TYPE_CHECKING, Annotated

import typer

from trainer.errors import exit_code

if TYPE_CHECKING:
    from trainer.verify.verify import LayoutResult


def verify(
    config: Annotated[
        str | None, typer.Argument(help="YAML file; its model section is used. Default: a small ViT.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    processes: Annotated[int, typer.Option(min=1, max=8, help="Processes on this machine.")] = 2,
    layouts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="offset=2,tensor=1,zero=3", help="A layout; repeat for several. Default: every layout."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Seconds until hanging processes are killed.")] = 600,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    """Train a net for a few steps on one process and on every mesh of several, and compare the numbers.

    Loss, gradient norm and updated weights must equal those of one process. Exit code 1 if a layout
    disagrees.
    """
    agree = True

    def action() -> None:
        from trainer.config.arguments import split_arguments
        from trainer.verify.layouts import choose_layouts, run_comparison

        nonlocal agree
        path, changes = split_arguments(config, overrides or [])
        comparison = choose_layouts(path, changes, processes, layouts or [])
        results = run_comparison(comparison, limit)
        _show(comparison.title, results, comparison.skipped)
        agree = all(result.agrees for result in results)

    raise typer.Exit(exit_code(action, debug) or (0 if agree else 1))


def _show(title: str, results: "list[LayoutResult]", skipped: list[str]) -> None:
    from trainer.reporting.table import Table
    from trainer.verify.verify import TOLERANCE

    table = Table(title)
    for result in results:
        cells = {
            "loss": f"{result.loss:.6f}",
            "off by": f"{result.loss_error:.0e}",
            "grad norm": f"{result.norm:.6f}",
            "off by ": f"{result.norm_error:.0e}",
            "weights off by": f"{result.weight_error:.0e}",
            "bank bytes/rank": f"{result.bank_bytes:,}",
            **{f"sent {axis}": f"{sent:,}" for axis, sent in result.sent.items()},
            "verdict": "agrees" if result.agrees else "DISAGREES",
        }
        for column, cell in cells.items():
            table.put(result.layout, column, cell)
    table.show()
    for line in skipped:
        print(f"skipped: {line}")
    count, wrong = len(results), sum(not result.agrees for result in results)
    verdict = f"{wrong} of {count} layouts disagree" if wrong else f"all {count} layouts agree"
    print(
        f"\n{verdict} with one process to {TOLERANCE:g}: relative for loss and norm, absolute for weights"
        "\nafter clipping and update. sent: bytes that one rank sends in a step, by axis."
    )


def register(app: typer.Typer) -> None:
    """Add the command to `translution`."""
    app.command("verify")(verify)
