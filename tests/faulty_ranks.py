"""Runs of several processes in which something goes wrong on purpose."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from parallel.spawn import describe_rank, free_port

Fault = Callable[[], None]
"""Called in each process before it trains; replaces what is to fail."""


@contextmanager
def started(
    world: int, arguments: Sequence[object], fault: Fault | None = None, log: Path | None = None
) -> Iterator[list[Any]]:
    """Processes that train as `python -m trainer ARGUMENTS` does; those left at the end are killed.

    They are forked from a server that has imported everything. stdout and stderr of all go to `log`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parallel.rank_imports"])
    port = free_port()
    ranks = [
        context.Process(
            target=_train,
            args=([str(a) for a in arguments], os.environ | describe_rank(number, world, port), fault, log),
            daemon=True,
        )
        for number in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()


def exit_codes(ranks: list[Any], seconds: float, grace: float = 10) -> list[int]:
    """Wait as a launcher does: once a rank has failed, the others get `grace` seconds, then are killed."""
    deadline = end = time.monotonic() + seconds
    while any(process.exitcode is None for process in ranks):
        now = time.monotonic()
        assert now < end, f"hangs: {[process.exitcode for process in ranks]}"
        if deadline == end and any(process.exitcode for process in ranks):
            deadline = min(end, now + grace)
        if now > deadline:
            for process in ranks:
                process.kill()
            deadline = end
        time.sleep(0.01)
    return [process.exitcode for process in ranks]


def _train(arguments: list[str], environment: dict[str, str], fault: Fault | None, log: Path | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    if log:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    from trainer.__main__ import main

    if fault:
        fault()
    sys.exit(main(arguments))


def is_rank(number: int) -> bool:
    return os.environ["RANK"] == str(number)


def on_fetch(action: Callable[[int, Any], Any]) -> None:
    """action(n, batch) replaces the n-th micro-batch that this process loads, from 1."""
    from trainer import train

    fetch, count = train._fetch, 0

    def loaded(batches: Iterator[Any]) -> Iterator[Any]:
        nonlocal count
        for batch in batches:
            count += 1
            yield action(count, batch)

    train._fetch = lambda batches, *others: fetch(loaded(batches), *others)


def on_save(action: Callable[[int], None]) -> None:
    """action(n) precedes the n-th save, from 1, inside it."""
    from parallel.engine.torch_engine import TorchEngine

    state, count = TorchEngine.state, 0

    def replaced(engine: Any) -> Any:
        nonlocal count
        count += 1
        action(count)
        return state(engine)

    TorchEngine.state = replaced


def sleep_forever() -> None:
    threading.Event().wait()
