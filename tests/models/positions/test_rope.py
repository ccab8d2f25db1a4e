"""Rotary tables are computed once for all layers of a net, and never outlive a pass that is not real."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import GPTConfig, build_model
from models.positions import rope

NET = GPTConfig.model_validate(
    {"vocabulary": 11, "tokens": 7, "width": 8, "depth": 3, "mlp": 16, "position": "rope"}
    | {"mixer": {"kind": "attention", "heads": 2, "head_dim": 4}}
)


@pytest.fixture
def computed(monkeypatch):
    """The dtypes of the tables that have been computed."""
    found, original = [], rope._angle
    rope._tables.cache_clear()
    monkeypatch.setattr(rope, "_angle", lambda *given: found.append(given[-1]) or original(*given))
    yield found
    rope._tables.cache_clear()


def test_all_layers_and_steps_share_one_table(computed):
    net, ids = build_model(NET), torch.randint(11, (2, 7))
    first = net(ids)
    assert torch.equal(net(ids), first)
    assert len(computed) == 1
    net.bfloat16()(ids)
    assert len(computed) == 2  # the tables of another dtype


def test_fake_and_meta_passes_neither_use_nor_leave_tables(computed):
    ids = torch.randint(11, (2, 7))
    with torch.device("meta"):
        build_model(NET)(ids.to("meta"))
    with FakeTensorMode() as mode:
        build_model(NET)(mode.from_tensor(ids))
    with torch.inference_mode():
        build_model(NET)(ids)
    assert rope._tables.cache_info().currsize == 0
    net = build_model(NET)
    net(ids, ids).backward()
    with FakeTensorMode() as mode:
        build_model(NET)(mode.from_tensor(ids))  # while real tables exist
