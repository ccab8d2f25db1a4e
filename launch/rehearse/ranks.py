"""Rehearses several ranks, each in a process of its own, some at a time."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from launch.rehearse.rank import Part, RankReport, rehearse_rank
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.flops import sample_flops
from parallel.planner.layers import LayerKinds
from parallel.planner.memory import fullest_rank
from parallel.rehearsal.distinct import distinct_ranks
from parallel.rehearsal.recorder import CannotRehearse
from trainer.data.prepare.pool import exit_with_parent

PROCESSES = max(1, min(4, len(os.sched_getaffinity(0)))) if hasattr(os, "sched_getaffinity") else 2


class OutOfTime(CannotRehearse):
    """A rehearsal that its time limit ended."""


def choose_ranks(text: str, net: LayerKinds, mesh: Mesh, parallel: ParallelConfig) -> list[int]:
    """Ranks by number, "fullest" (the one with most bank entries), "busiest" (most FLOPs), or "all-distinct":
    one of each kind, see `distinct_ranks`.

    Raises UserError for anything else.
    """
    if text == "all-distinct":
        return distinct_ranks(net, mesh, parallel)
    ranks = []
    for word in text.split(","):
        word = word.strip()
        if word == "fullest":
            ranks.append(fullest_rank(net, mesh).rank)
        elif word == "busiest":
            ranks.append(busiest_rank(net, mesh, parallel))
        elif word.isdigit() and int(word) < mesh.world:
            ranks.append(int(word))
        else:
            raise UserError(
                f"--ranks {text}: {word or 'nothing'} is no rank of 0 … {mesh.world - 1}, nor fullest, "
                "busiest or all-distinct"
            )
    return sorted(set(ranks))


def busiest_rank(net: LayerKinds, mesh: Mesh, parallel: ParallelConfig) -> int:
    """The one with most FLOPs, by the plan: it sets the pace."""
    places = [replace(mesh, rank=rank) for rank in range(0, mesh.model, mesh.tensor)]
    return max(places, key=lambda place: sample_flops(net, place, parallel, own_rank=True).training).rank


def rehearse(parts: Sequence[Part], seconds: float) -> list[RankReport]:
    """Rehearses all parts; raises the first UserError of one, and OutOfTime after `seconds`."""
    context = multiprocessing.get_context("forkserver")
    deepspeed = any(part.config.parallel.engine == "deepspeed" for part in parts)
    context.set_forkserver_preload(["launch.rehearse.rank"] + ["parallel.rank_imports"] * deepspeed)
    deadline, waiting = time.monotonic() + seconds, list(enumerate(parts))
    running: dict[int, tuple[Any, Any]] = {}
    found: dict[int, RankReport] = {}
    try:
        while len(found) < len(parts):
            while waiting and len(running) < PROCESSES:
                number, part = waiting.pop(0)
                running[number] = _start(context, part)
            ready = [n for n, (process, pipe) in running.items() if pipe.poll() or not process.is_alive()]
            for number in ready:
                process, pipe = running.pop(number)
                found[number] = _receive(process, pipe, parts[number])
            if time.monotonic() > deadline:
                raise OutOfTime(
                    f"no end within {seconds:.0f} s: {len(found)} of {len(parts)} ranks rehearsed"
                )
            if not ready:
                time.sleep(0.01)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return [found[number] for number in range(len(parts))]


def _start(context: Any, part: Part) -> tuple[Any, Any]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(part: Part, pipe: Any) -> None:
    exit_with_parent()
    torch.set_num_threads(1)
    try:
        outcome = rehearse_rank(part)
    except UserError as error:
        outcome = error
    except BaseException:
        outcome = traceback.format_exc()
    pipe.send(outcome)


def _receive(process: Any, pipe: Any, part: Part) -> RankReport:
    try:
        outcome = pipe.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the rehearsal of rank {part.rank} died with code {process.exitcode}") from None
    process.join()
    if isinstance(outcome, UserError):
        raise outcome
    if isinstance(outcome, str):
        raise RuntimeError(f"the rehearsal of rank {part.rank} failed:\n{outcome}")
    return outcome
