"""The way of batches to the device: one ahead, in order, and its end."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from parallel.errors import UserError
from trainer.data import feed
from trainer.data.feed import on_device, one_ahead
from trainer.data.source import Batch


def test_one_item_more_is_prepared_than_was_asked_for():
    prepared, enough = [], threading.Event()

    def prepare(item: int) -> int:
        prepared.append(item)
        if item == 2:
            enough.set()  # 0 is in use, 1 is ready, 2 is being prepared
        return 10 * item

    items = one_ahead(iter(range(100)), prepare)
    assert next(items) == 0
    assert enough.wait(20)
    assert prepared == [0, 1, 2]
    assert next(items) == 10
    items.close()
    assert len(prepared) <= 4
    assert not any(thread.name == "feed" for thread in threading.enumerate())


def test_all_items_come_in_order_and_then_the_end():
    assert list(one_ahead(iter(range(20)), lambda item: item)) == list(range(20))


def test_what_the_loader_raises_is_raised_where_the_batch_is_asked_for():
    def items() -> Iterator[int]:
        yield 1
        raise UserError("a damaged shard")

    received = one_ahead(items(), lambda item: item)
    assert next(received) == 1
    with pytest.raises(UserError, match="a damaged shard"):
        next(received)


class FakeCuda:
    """Writes down what is asked of the streams, in place of torch.cuda."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = SimpleNamespace(wait_event=lambda event: self.log.append(f"wait for {event.number}"))
        self.copies = 0

    def copy(self, batch: Batch, device: torch.device, side: object) -> tuple[Batch, SimpleNamespace]:
        self.copies += 1
        parts = [SimpleNamespace(part=part, record_stream=self.record) for part in batch]
        return Batch(*parts), SimpleNamespace(number=self.copies)  # pyright: ignore

    def record(self, stream: object) -> None:
        assert stream is self.current
        self.log.append("record")


def test_on_cuda_a_batch_is_used_after_its_copy_and_augmented_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.current)
    monkeypatch.setattr(feed, "_copy", cuda.copy)

    def augment(batch: Batch, training: bool) -> Batch:
        cuda.log.append("augment")
        return batch

    batches = (Batch(torch.tensor([number]), torch.tensor([0])) for number in range(3))
    received = on_device(batches, SimpleNamespace(on_device=augment), torch.device("cuda", 0), training=True)
    for number in range(3):
        batch = next(received)
        assert batch.inputs.part.item() == number
        assert cuda.log == [f"wait for {number + 1}", "record", "record", "augment"]
        cuda.log.clear()
    assert next(received, None) is None
