"""Processes that each do one piece of a preparation, the results as they come."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from parallel.errors import UserError

PieceT = TypeVar("PieceT")
ResultT = TypeVar("ResultT")


def each_piece(
    work: Callable[[PieceT], ResultT], pieces: Iterable[PieceT], workers: int
) -> Generator[ResultT]:
    """work(piece) of all pieces in `workers` processes (0: in this one), in the order of completion.

    At most two pieces per process are under way. When the consumer stops, the processes are ended
    in the midst of their pieces. Raises what `work` raised, and UserError when a process dies.
    """
    if workers == 0:
        yield from map(work, pieces)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=serve_parent)
    others = set(multiprocessing.active_children())
    under_way: set[Future[ResultT]] = set()
    whole = False
    try:
        for piece in pieces:
            under_way.add(pool.submit(work, piece))
            if len(under_way) >= 2 * workers:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        whole = True
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} processes died, perhaps for want of memory; "
            "run the command again with fewer --workers to go on"
        ) from None
    finally:
        if not whole:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def serve_parent() -> None:
    """What a worker process begins with: it ends when its parent does, and only then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's business
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A killed first process would otherwise leave its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
