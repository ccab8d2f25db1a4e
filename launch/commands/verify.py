"""`translution verify`: does a net train to the same numbers on every mesh, with either engine?"""

from typing import TYPE_CHECKING, Annotated

import typer

from trainer.errors import exit_code

if TYPE_CHECKING:
    from trainer.verify.verify import Row


def verify(
    config: Annotated[
        str | None, typer.Argument(help="YAML file whose model section is used; else a small ViT.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    processes: Annotated[int, typer.Option(min=1, max=8, help="Processes on this machine.")] = 2,
    layouts: Annotated[
        list[str] | None,
        typer.Option(metavar="offset=2,tensor=1,zero=3", help="Repeat for several; else every layout."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Seconds after which a hang is assumed.")] = 600,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    """Train a net a few steps on one process and on every mesh of several, and compare the numbers.

    The loss, the gradient's norm and the clipped and updated weights must be those of one process. Exit
    code 1 if a layout disagrees.
    """
    agree = True

    def action() -> None:
        from trainer.setup import split_words
        from trainer.verify import layouts as verify_plan

        nonlocal agree
        plan = verify_plan.make(*split_words(config, overrides or []), processes, layouts or [])
        rows = verify_plan.run(plan, limit)
        _show(plan.title, rows, plan.left_out)
        agree = all(row.agrees for row in rows)

    raise typer.Exit(exit_code(action, debug) or (0 if agree else 1))


def _show(title: str, rows: "list[Row]", left_out: list[str]) -> None:
    from trainer.reporting.table import Table
    from trainer.verify.verify import TOLERANCE

    table = Table(title)
    for row in rows:
        cells = {
            "loss": f"{row.loss:.6f}",
            "off by": f"{row.loss_error:.0e}",
            "grad norm": f"{row.norm:.6f}",
            "off by ": f"{row.norm_error:.0e}",
            "weights off by": f"{row.weight_error:.0e}",
            "bank bytes/rank": f"{row.bank_bytes:,}",
            **{f"sent {axis}": f"{sent:,}" for axis, sent in row.sent.items()},
            "verdict": "agrees" if row.agrees else "DISAGREES",
        }
        for column, cell in cells.items():
            table.put(row.layout, column, cell)
    table.show()
    for line in left_out:
        print(f"left out: {line}")
    wrong = sum(not row.agrees for row in rows)
    verdict = f"{wrong} of {len(rows)} layouts disagree" if wrong else f"all {len(rows)} layouts agree"
    print(
        f"\n{verdict} with one process to {TOLERANCE:g}: loss and norm relative to their size, weights"
        "\nafter clipping and update absolute. sent: bytes that leave one rank in a step, by axis."
    )


def register(app: typer.Typer) -> None:
    """Add the command to `translution`."""
    app.command("verify")(verify)
