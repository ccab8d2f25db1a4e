"""The stand-ins of a rehearsal."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel.rehearsal.fakes import _equal_parts


def test_equal_parts_of_a_flat_fake_tensor_are_one_view():
    with FakeTensorMode(), _equal_parts():
        flat = torch.empty(12)
        parts = [flat.narrow(0, start, 4) for start in (0, 4, 8)]
        assert parts[0] is parts[1] is parts[2]
        assert parts[0].untyped_storage()._cdata == flat.untyped_storage()._cdata
        assert flat[4:8] is parts[0]
        assert flat[8:99] is parts[0]
        assert flat[10:].shape == (2,)
        assert flat.view(3, 4)[0:1].shape == (1, 4)
        weight = nn.Parameter(torch.empty(12))
        assert weight[:4] is not weight[4:8]  # each has a gradient of its own


def test_a_view_that_is_shared_keeps_nothing_alive():
    gc.disable()
    try:
        with FakeTensorMode(), _equal_parts():
            flat = torch.empty(12)
            part = weakref.ref(flat.narrow(0, 0, 4))
            whole = weakref.ref(flat)
            del flat
            assert part() is None
            assert whole() is None
    finally:
        gc.enable()


def test_real_tensors_have_parts_of_their_own():
    with _equal_parts():
        flat = torch.arange(4)
        assert flat[:2].tolist() == [0, 1]
        assert flat[2:].tolist() == [2, 3]
