"""Compiled, the element-wise stage stays the same function, and is really compiled."""

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from models import OffsetGrid, Translution
from models.ops.walk.schedule import Schedule
from models.ops.walk.stage import stage
from tests.models.mixers.test_translution import DIM, HEAD_DIM, HEADS, assert_equal_with_gradients, naive_full


def test_compiled_stage_equals_the_plain_one(monkeypatch):
    """One compilation of each function serves chunks of different sizes; nothing falls back."""
    pairs, chunks = [], Schedule.chunks
    monkeypatch.setattr(
        Schedule, "chunks", lambda *a: pairs.append([c.pairs for c in chunks(*a)]) or chunks(*a)
    )
    torch.compiler.reset()
    stage.cache_clear()
    counters.clear()
    layer = Translution(DIM, OffsetGrid((3, 4)), HEADS, HEAD_DIM, workspace=70_000, compiled=True)
    with dynamo.patch(error_on_recompile=True):
        assert_equal_with_gradients(layer, naive_full)
    assert pairs[0] == [60, 60, 24]
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
