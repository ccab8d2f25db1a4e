"""Apply a function to many items in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from parallel.errors import UserError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_IN_FLIGHT = 3  # items per process


def map_in_processes(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Generator[ResultT]:
    """work(item) of all items in `workers` processes (0: this one), in the order of the items.

    `work` is sent to each process once, so it may hold large objects. At most three items per process
    are in flight. Closing the generator kills the processes. Raises what `work` raised, and UserError
    when a process dies.
    """
    if workers == 0:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(work,))
    others = set(multiprocessing.active_children())
    in_flight: deque[Future[ResultT]] = deque()
    finished = False
    try:
        for item in items:
            in_flight.append(pool.submit(_apply, item))
            if len(in_flight) >= _IN_FLIGHT * workers:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
        finished = True
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} worker processes died, perhaps out of memory; "
            "run the command again with fewer --workers to resume"
        ) from None
    finally:
        if not finished:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]  # of a worker process


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    exit_with_parent()
    _work = work


def _apply(item: Any) -> Any:
    return _work(item)


def exit_with_parent() -> None:
    """Worker initializer: exit when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
