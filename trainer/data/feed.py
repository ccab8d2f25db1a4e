"""The way of batches to the device: loaded, pinned and copied one ahead while the device computes."""

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

import torch

from trainer.data.source import Batch, Source

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")
_POLL_SECONDS = 0.1


def on_device(
    batches: Iterator[Batch], source: Source, device: torch.device, training: bool = False
) -> Generator[Batch, None, None]:
    """`batches` on `device`, after `source.on_device`.

    On CUDA a thread loads the next batch and copies it from pinned memory on a stream of its own. What
    `source.on_device` does, which may draw random numbers, is done when its batch is asked for.
    """
    if device.type != "cuda":
        for batch in batches:
            yield source.on_device(Batch(*(part.to(device) for part in batch)), training)
        return
    side = torch.cuda.Stream(device)
    for batch, copied in one_ahead(batches, lambda batch: _copy(batch, device, side)):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)
        for part in batch:
            part.record_stream(stream)  # its memory is not reused before this stream is done with it
        yield source.on_device(batch, training)


def one_ahead(items: Iterator[Raw], prepare: Callable[[Raw], Ready]) -> Generator[Ready, None, None]:
    """`prepare` of each item, done in a thread while the one before is in use.

    What `items` or `prepare` raises is raised here. Closing the iterator ends the thread.
    """
    ready: Queue[tuple[Ready] | BaseException | None] = Queue(maxsize=1)
    closed = Event()

    def put(outcome: tuple[Ready] | BaseException | None) -> None:
        while not closed.is_set():
            with suppress(Full):
                return ready.put(outcome, timeout=_POLL_SECONDS)

    def work() -> None:
        try:
            for item in items:
                put((prepare(item),))
                if closed.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while True:
            try:
                outcome = ready.get(timeout=_POLL_SECONDS)  # so that a signal's handler is not kept waiting
            except Empty:
                continue
            if outcome is None:
                return
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome[0]
    finally:
        closed.set()
        thread.join()


def _copy(batch: Batch, device: torch.device, side: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """The batch on `device`, and the event after which it is there."""
    with torch.cuda.device(device), torch.cuda.stream(side):
        copy = Batch(*(part.pin_memory().to(device, non_blocking=True) for part in batch))
        copied = torch.cuda.Event()
        copied.record(side)
    return copy, copied
