"""Keeps saved activations in pinned host memory, copied on a stream of their own, and fetched one ahead."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class CudaStreams:
    """What `HostOffload` needs of CUDA."""

    def create(self, device: torch.device) -> Any:
        return torch.cuda.Stream(device)

    def current(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(device)

    def use(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def keep(self, tensor: Tensor, stream: Any) -> None:
        """The tensor's memory is not reused before the stream has passed this point."""
        tensor.record_stream(stream)

    def pinned(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


class HostOffload:
    """Saved-tensor hooks: forward copies a tensor to the host while it computes on, and backward, when it
    takes one back, already starts to fetch the one saved before it. Tensors on the CPU stay as they are."""

    def __init__(self, streams: CudaStreams | None = None, kind: str = "cuda") -> None:
        self._streams, self._kind = streams or CudaStreams(), kind
        self._side: Any = None
        self._last: Callable[[], _OnHost | None] = lambda: None  # what was saved most recently

    def hooks(self) -> AbstractContextManager[None]:
        """Around the forward pass of what is to be saved."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _OnHost:
        if tensor.device.type != self._kind:
            return tensor
        if self._side is None:
            self._side = self._streams.create(tensor.device)
        self._side.wait_stream(self._streams.current(tensor.device))
        host = self._streams.pinned(tensor)
        with self._streams.use(self._side):
            host.copy_(tensor, non_blocking=True)
        self._streams.keep(tensor, self._side)
        saved = _OnHost(host, tensor.device, self._last)
        self._last = weakref.ref(saved)
        return saved

    def _unpack(self, saved: Tensor | _OnHost) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        self._fetch(saved)
        tensor, ready = saved.fetched
        saved.fetched = None
        current = self._streams.current(saved.device)
        current.wait_event(ready)
        self._streams.keep(tensor, current)
        before = saved.before()
        if before is not None:
            self._fetch(before)
        return tensor

    def _fetch(self, saved: _OnHost) -> None:
        """Starts the copy to the device, unless it has been started."""
        if saved.fetched is None:
            with self._streams.use(self._side):
                tensor = saved.host.to(saved.device, non_blocking=True, copy=True)
            saved.fetched = (tensor, self._side.record_event())


class _OnHost:
    """A tensor on the host, or on its way; `before()` is the one saved before it, if it is still needed."""

    def __init__(self, host: Tensor, device: torch.device, before: Callable[[], _OnHost | None]) -> None:
        self.host, self.device, self.before = host, device, before
        self.fetched: Any = None  # the tensor on the device, and the event after which it is whole
