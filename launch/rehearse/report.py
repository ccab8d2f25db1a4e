"""Prints a rehearsal (`translution rehearse CONFIG`)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.rehearse.rank import RankReport
from launch.rehearse.run import Rehearsed
from parallel.errors import UserError
from parallel.planner.units import size_text
from parallel.rehearsal.collectives import Collective, digest

_MOST_KINDS = 12  # of collectives, unless all are asked for
_WIDTH = 110  # of lines in files and pipes
NOT_COUNTED = (
    "Counted, not measured. Not in a peak: the allocator's rounding and gaps, the CUDA context, NCCL's and "
    "cuBLAS's own buffers, augmentation of images on the device."
)


def show(found: Rehearsed, as_json: bool, all_collectives: bool) -> None:
    """Prints it, and raises UserError with what is wrong, if something is."""
    if as_json:
        print(json.dumps(as_values(found), indent=2))
    else:
        _print(found, all_collectives)
    if problem := found.problem():
        raise UserError(problem)


def _print(found: Rehearsed, all_collectives: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    engine = found.config.parallel.engine
    engine += f" ZeRO-{found.config.parallel.zero}" if engine == "deepspeed" else ""
    console.print(
        f"{found.config.name}: rank {', '.join(str(r.rank) for r in found.ranks)} of {found.mesh.world}, "
        f"{found.mesh}, {engine}, {found.config.precision}",
        markup=False,
    )
    for part in (_figures(found), _stack(found.fullest), _tensors(found.fullest)):
        console.print(part)
    for rank in found.ranks[:1] if not all_collectives else found.ranks:
        console.print(_collectives(rank, all_collectives))
    for line in _remarks(found):
        console.print(line, markup=False, soft_wrap=True)


def _figures(found: Rehearsed) -> Table:
    table = _table(
        "Each rank's step, beside the plan of the same rank", "rank", "what", "rehearsed", "planned"
    )
    table.add_column("difference", justify="right")
    for rank, own in zip(found.ranks, found.figures(), strict=True):
        for place, figure in enumerate(own):
            planned = "" if figure.planned is None else f"{figure.planned:,.0f}"
            difference = "" if figure.difference is None else f"{figure.difference:+.2%}"
            first = str(rank.rank) if place == 0 else ""
            table.add_row(first, figure.name, f"{figure.rehearsed:,.0f}", planned, difference)
        if rank.work.seconds:
            table.add_row("", "seconds of kernels, counted", f"{rank.work.seconds:.4g}", "", "")
        table.add_row(
            "", "collectives, their digest", f"{len(rank.collectives)}", digest(rank.collectives), ""
        )
        table.add_section()
    return table


def _stack(rank: RankReport) -> Table:
    table = _table(f"Alive at the peak of rank {rank.rank}: {rank.peak.moment}", "kind", "bytes", "share")
    for kind, size in rank.peak.by_kind.items():
        table.add_row(kind, f"{size:,}", f"{size / rank.peak.bytes:.1%}")
    table.add_section()
    table.add_row("all", f"{rank.peak.bytes:,}", "")
    others = {"in an evaluation step": rank.evaluation, "while a checkpoint is saved": rank.saving}
    for what, size in (others | ({"in host memory": rank.host} if rank.host else {})).items():
        table.add_row(what, f"{size:,}", "")
    return table


def _tensors(rank: RankReport) -> Table:
    table = _table("The largest tensors then", "kind", "number", "shape", "bytes", "made by")
    for each in rank.peak.largest:
        shape = f"{each.dtype} {list(each.shape)}"
        where = each.made_by + (f" in {each.module}" if each.module else "")
        table.add_row(each.kind, str(each.number), shape, f"{each.bytes:,}", where)
    return table


def _collectives(rank: RankReport, every: bool) -> Table:
    title = f"Collectives of rank {rank.rank}" + (", in order" if every else ", by kind")
    table = _table(title, "times", "axis", "operation", "dtype", "bytes", "called in")
    runs = [(key, len(list(group))) for key, group in groupby(rank.collectives, key=_described)]
    kinds = Counter(map(_described, rank.collectives)).most_common(_MOST_KINDS)
    for (axis, operation, dtype, size, where), count in runs if every else kinds:
        table.add_row(str(count), axis, operation, dtype, f"{size:,}", where)
    return table


def _described(each: Collective) -> tuple[str, str, str, int, str]:
    return (*each.same, each.stack[0] if each.stack else "")


def _remarks(found: Rehearsed) -> list[str]:
    lines = [f"More than 5 % from the plan: {line}" for line in found.named_differences()]
    if disagreement := found.disagreement():
        lines += disagreement.lines()
    elif len(found.ranks) > 1:
        lines.append(f"All {len(found.ranks)} ranks agree on their collectives and on the order of them.")
    lines += [f"Stand-in: {line}" for line in found.ranks[0].stand_ins]
    seconds, memory = (max(rank.took[i] for rank in found.ranks) for i in (0, 1))
    lines.append(f"{NOT_COUNTED} A rank took {seconds:.1f} CPU seconds and {size_text(memory)} here.")
    return lines


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        number = column in ("rehearsed", "planned", "bytes", "number", "times", "share")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def as_values(found: Rehearsed) -> dict[str, Any]:
    """All of it, for JSON."""
    disagreement = found.disagreement()
    return {
        "name": found.config.name,
        "world": found.mesh.world,
        "mesh": {"data": found.mesh.data, "offset": found.mesh.offset, "tensor": found.mesh.tensor},
        "fits": found.fits,
        "problem": found.problem(),
        "differences": found.named_differences(),
        "disagreement": disagreement and disagreement.lines(),
        "ranks": [
            {
                "rank": rank.rank,
                "figures": [figure._asdict() for figure in own],
                "peak": rank.peak._asdict() | {"largest": [each._asdict() for each in rank.peak.largest]},
                "evaluation_peak": rank.evaluation,
                "saving_peak": rank.saving,
                "host_bytes": rank.host,
                "work": rank.work._asdict(),
                "digest": digest(rank.collectives),
                "collectives": [each._asdict() for each in rank.collectives],
                "evaluation_save_and_load_collectives": [each._asdict() for each in rank.rare],
                "stand_ins": rank.stand_ins,
                "took": {"cpu_seconds": rank.took[0], "bytes": rank.took[1]},
            }
            for rank, own in zip(found.ranks, found.figures(), strict=True)
        ],
    }
