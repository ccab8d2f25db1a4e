"""Offloaded activations: values, and the order of copies and waits on a recorded pair of streams.

Without a card the streams are fakes: they record what is asked of them, and copies run at once.
"""

import gc
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from parallel.sharding.offload import HostOffload


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.log.append(f"event on {self.name}")
        return len(self.log) - 1

    def wait_event(self, event):
        assert self.log[event] == "event on side"
        self.log.append(
            f"{self.name} waits for event {sum(e == 'event on side' for e in self.log[: event + 1])}"
        )


class Streams:
    """Two streams of a device that computes on the CPU's memory."""

    def __init__(self):
        self.log, self.now = [], "main"
        self.main = Stream("main", self.log)

    def create(self, device):
        return Stream("side", self.log)

    def current(self, device):
        return self.main

    @contextmanager
    def use(self, stream):
        self.log.append(f"copy on {stream.name}")
        yield

    def keep(self, tensor, stream):
        self.log.append(f"kept for {stream.name}")

    def pinned(self, like):
        return torch.empty_like(like)


def deep(offload, x, layers=3, log=None):
    """Sum of `layers` recomputed layers; notes when each is recomputed."""
    for number in range(layers):

        def layer(x, number=number):
            if log is not None and torch.is_grad_enabled():
                log.append(f"compute {number}")
            return (x * (number + 1)).sin()

        with offload.hooks():
            x = checkpoint(layer, x, use_reentrant=True)
    return x.sum()


def test_gradients_are_those_of_kept_activations():
    x = torch.randn(5, dtype=torch.float64)
    grads = []
    for offload in (HostOffload(), HostOffload(Streams(), kind="cpu")):  # the first leaves tensors on the CPU
        ours = x.clone().requires_grad_()
        deep(offload, ours).backward()
        grads.append(ours.grad)
    assert torch.equal(*grads)


def test_copies_run_beside_the_computation_and_come_back_one_layer_ahead():
    streams = Streams()
    offload = HostOffload(streams, kind="cpu")
    loss = deep(offload, torch.randn(5, requires_grad=True), log=streams.log)
    out = ["side waits for main", "copy on side", "kept for side"]  # the source outlives its copy
    assert streams.log == out * 3
    streams.log.clear()
    loss.backward()
    assert streams.log == [
        *("copy on side", "event on side", "main waits for event 1", "kept for main"),
        *("copy on side", "event on side"),  # layer 1, while layer 2 is computed again
        "compute 2",
        *("main waits for event 2", "kept for main", "copy on side", "event on side"),
        "compute 1",
        *("main waits for event 3", "kept for main"),
        "compute 0",
    ]


def test_a_forward_pass_without_backward_leaves_nothing_behind():
    offload = HostOffload(Streams(), kind="cpu")
    deep(offload, torch.randn(5, requires_grad=True))
    gc.collect()
    assert offload._last() is None
