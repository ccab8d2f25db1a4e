"""What kind of device an operator works for: meta tensors stand for one, to be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_meta_stands_for = ["cuda"]


def device_type(device: torch.device) -> str:
    """The device's type; for the meta device, of what it stands for."""
    return _meta_stands_for[-1] if device.type == "meta" else device.type


@contextmanager
def meta_stands_for(device_type: str) -> Iterator[None]:
    """Cuts chunks on the meta device as on devices of this type, to measure what a pass would cost there."""
    _meta_stands_for.append(device_type)
    try:
        yield
    finally:
        _meta_stands_for.pop()
