"""`translution runs`: list, compare and remove runs, whoever started them."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trainer.errors import exit_code

_LIST = "list"
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")]
Filter = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=PATTERN",
        help="Only runs with this value of a config key, state, name or tag; * matches anything; repeatable.",
    ),
]
Folder = Annotated[Path, typer.Argument(help="Where to look for runs.")]


class _ListUnlessTold(TyperGroup):
    """`translution runs FOLDER` lists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_LIST, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="List, compare and remove runs: `translution runs [FOLDER]` lists those below a folder.",
    cls=_ListUnlessTold,
)


@app.command(_LIST)
def list_command(
    folder: Folder = Path("runs"),
    sort: Annotated[
        str, typer.Option(help="A column, a metric or a config key; the best and newest come first.")
    ] = "started",
    filters: Filter = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
    debug: Debug = False,
) -> None:
    """Every run below FOLDER, local, Slurm's or of a study: state, step, loss, best measure, device-hours."""

    def action() -> None:
        from launch.runs.listing import as_json as json_of
        from launch.runs.listing import list_runs, table_of

        runs = list_runs(folder, filters or [], sort)
        if as_json:
            print(json_of(runs))
        else:
            table_of(runs, folder).show()

    raise typer.Exit(exit_code(action, debug))


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="A B...", help="Run directories.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curves too: .png, .pdf, .svg.")
    ] = None,
    debug: Debug = False,
) -> None:
    """What differs between the configs of runs, their curves, and their best evaluations."""

    def action() -> None:
        from launch.runs.compare import compare_runs, plot_curves

        for table in compare_runs(runs):
            table.show()
        if plot:
            plot_curves(runs, plot)
            print(f"\nwrote {plot}")

    raise typer.Exit(exit_code(action, debug))


@app.command("remove")
def remove_command(
    folder: Folder = Path("runs"),
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what has not changed for 30d, 12h, 2w.")
    ] = None,
    filters: Filter = None,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Keep the best run of every metric and evaluation set.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    """Delete runs and whole studies below FOLDER, after asking; one that is alive stays."""

    def action() -> None:
        from launch.runs.find import find_runs
        from launch.runs.listing import list_runs
        from launch.runs.remove import choose, describe, remove
        from parallel.errors import UserError

        if older_than is None and not filters:
            raise UserError("runs remove: say which, by --older-than 30d or --filter KEY=VALUE")
        chosen = list_runs(folder, filters or [], "name")
        choice = choose(chosen, find_runs(folder), older_than, keep_best)
        print("\n".join(describe(choice)))
        if not choice.remove:
            print("nothing to remove")
            return
        if not yes and not sys.stdin.isatty():
            raise UserError("runs remove: there is no terminal to ask; give --yes to remove these")
        if yes or typer.confirm(f"Remove {len(choice.remove)}?"):
            remove(choice.remove)
            print(f"removed {len(choice.remove)}")

    raise typer.Exit(exit_code(action, debug))


def register(parent: typer.Typer) -> None:
    """Add these commands to the `translution` command."""
    parent.add_typer(app, name="runs")
