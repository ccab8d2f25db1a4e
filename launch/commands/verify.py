"""`translution verify`: checks that a net trains to the same numbers on every mesh and engine, and that
the operator's kernels agree on this machine's card."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parallel.errors import UserError
from trainer.errors import exit_code

if TYPE_CHECKING:
    from models.mixers.kernel_check import Check
    from trainer.verify.verify import LayoutResult


def verify(
    config: Annotated[
        str | None, typer.Argument(help="YAML file; its model section is used. Default: a small ViT.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    net: Annotated[
        list[str] | None,
        typer.Option(help="A small net of this mixer or position, repeatable, or all; takes no config."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=8, help="Processes on this machine.")] = 2,
    layouts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="offset=2,tensor=1,zero=3", help="A layout; repeat for several. Default: every layout."
        ),
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"] | None,
        typer.Option(help="Compare the operator's kernels on this device instead; takes no config."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Seconds until hanging processes are killed.")] = 600,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    """Train a net for a few steps on one process and on every mesh of several, and compare the numbers.

    Loss, gradient norm and updated weights must equal those of one process. Exit code 1 if a layout
    disagrees. With --device, every kernel is compared with the paper's equations, with the other kernels, and
    with a second run of itself.
    """
    agree = True

    def compare_kernels() -> None:
        from launch.card_report import check_device, describe
        from models.mixers.kernel_check import CASES, LARGE_CASES, check_kernels

        nonlocal agree
        if config is not None:
            raise UserError(f"--device {device}: compares the operator's kernels and takes no config")
        where = check_device(device or "cpu")
        checks = list(check_kernels(where, CASES + LARGE_CASES * (device == "cuda")))
        _show_kernels(describe(where), checks)
        agree = all(check.agrees for check in checks)

    def action() -> None:
        if device is not None:
            compare_kernels()
            return
        from trainer.config.arguments import split_arguments
        from trainer.verify.layouts import choose_layouts, run_comparison
        from trainer.verify.nets import NETS

        nonlocal agree
        path, changes = split_arguments(config, overrides or [])
        if net and path is not None:
            raise UserError(f"--net {net[0]}: takes no config, but {path} is given")
        names = list(NETS) if net and "all" in net else net or ["translution"]
        for comparison in [choose_layouts(path, changes, processes, layouts or [], name) for name in names]:
            results = run_comparison(comparison, limit)
            _show(comparison.title, results, comparison.skipped)
            agree = agree and all(result.agrees for result in results)

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


def _show_kernels(machine: str, checks: "list[Check]") -> None:
    from models.mixers.kernel_check import TOLERANCES
    from trainer.reporting.table import Table

    table = Table(f"Kernels of the operator on {machine}")
    for check in checks:
        if check.reason is not None:
            continue
        dtype = str(check.dtype).removeprefix("torch.")
        cells = {
            "off by": f"{check.error:.0e}",
            "off the loop by": f"{check.loop:.0e}",
            "second run": "same bits" if check.repeats else "DIFFERS",
            "verdict": "agrees" if check.agrees else "DISAGREES",
        }
        for column, cell in cells.items():
            table.put(f"{check.case}, {dtype}, {check.kernel}", column, cell)
    table.show()
    refused = {(check.kernel, check.reason) for check in checks if check.reason is not None}
    for kernel, reason in sorted(refused):
        print(f"not compared: {kernel} ({reason})")
    for check in checks:
        if check.failure is not None:
            print(f"FAILED: {check.case}, {check.kernel}: {check.failure}")
    ran = [check for check in checks if check.reason is None]
    wrong = sum(not check.agrees for check in ran)
    limits = ", ".join(
        f"{limit:g} in {str(dtype).removeprefix('torch.')}" for dtype, limit in TOLERANCES.items()
    )
    verdict = f"{wrong} of {len(ran)} disagree" if wrong else f"all {len(ran)} agree"
    print(
        f"\n{verdict}. off by: relative, the worst of outputs and gradients, from the equations in float64"
        f"\n(from the loop in float32 for layers of real size); at most {limits}."
    )


def register(app: typer.Typer) -> None:
    """Add the command to `translution`."""
    app.command("verify")(verify)
