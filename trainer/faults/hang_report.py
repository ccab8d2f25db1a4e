"""Where each rank of a hanging run is, and which of them the others wait for."""

import linecache
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from parallel import traffic_counter
from parallel.code_folder import CODE_FOLDER

_PACKAGES = ("launch", "trainer", "parallel", "models")
_COLLECTIVE_FILES = (os.path.join("torch", "distributed"), os.path.join("deepspeed", "comm"))
_SHOWN = 4  # ranks in the line
_WAITS = (".wait(", ".synchronize(")  # of a collective, in lines of our own


class Report(NamedTuple):
    """What a rank was doing.

    doing     the part of training
    where     file, line and function of our code
    waiting   whether it was in a collective, so waits for other ranks
    """

    rank: int
    step: int
    doing: str
    where: str
    waiting: bool


def own_report(thread: int, rank: int, step: int, doing: str) -> Report:
    """The report of this process, whose training runs in `thread`."""
    stack = traceback.extract_stack(sys._current_frames()[thread])
    folders = tuple(f"{CODE_FOLDER / package}{os.sep}" for package in _PACKAGES)
    hooks = traffic_counter.__file__  # around collectives, when they are counted or timed
    ours = [frame for frame in stack if frame.filename.startswith(folders) and frame.filename != hooks]
    last = (ours or stack)[-1]
    where = f"{os.path.relpath(last.filename, CODE_FOLDER)}:{last.lineno} in {last.name}"
    inside = any(part in frame.filename for frame in stack for part in _COLLECTIVE_FILES)
    line = linecache.getline(stack[-1].filename, stack[-1].lineno or 0)
    return Report(rank, step, doing, where, inside or any(wait in line for wait in _WAITS))


def describe_hang(reports: dict[int, Report], world: int) -> str:
    """Which ranks the others wait for: those without a report, else those that are not in a collective, else
    those that are behind."""
    if silent := sorted(set(range(world)) - set(reports)):
        return f"rank {', '.join(map(str, silent))} of {world} gave no sign of life"
    late = [report for report in reports.values() if not report.waiting]
    if not late:
        late = [r for r in reports.values() if r.step == min(each.step for each in reports.values())]
    shown = [f"rank {r.rank} of {world} is {r.doing} at {r.where}" for r in sorted(late)[:_SHOWN]]
    more = [f"{len(late) - _SHOWN} more ranks too"] if len(late) > _SHOWN else []
    others = f" while the other {world - len(late)} wait" if world > len(late) else ""
    return "; ".join(shown + more) + others


def flight_record() -> bytes | None:
    """The collectives of this process as its backend recorded them, JSON; None where it keeps no record."""
    record: Any = None
    native = vars(torch._C).get("_distributed_c10d")
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        if record is None and (dump := getattr(native, name, None)):
            with suppress(Exception):
                record = dump(True, False)
    return record.encode() if isinstance(record, str) else record
