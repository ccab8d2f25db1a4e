"""A checkpoint that the ranks of one mesh wrote holds, to the bit, what those of any other read."""

from pathlib import Path

import pytest
import torch

from models import build_model
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import read_contents
from parallel.checkpoint.load import load_state
from parallel.engine.interface import HeldState
from parallel.sharding.layout import shards
from tests.parallel.checkpoint.nets import held_state, ranks, write
from tests.parallel.sharding.test_layout import NETS

MOVES = [  # data × offset × tensor and ZeRO stage before and after
    ((1, 1, 1), 0, (1, 1, 1), 0),
    ((1, 1, 1), 0, (2, 2, 1), 3),
    ((2, 2, 1), 0, (1, 1, 4), 0),
    ((2, 2, 1), 3, (1, 1, 1), 0),
    ((4, 1, 1), 3, (1, 2, 2), 0),
    ((3, 1, 1), 1, (2, 1, 2), 3),
    ((2, 1, 2), 2, (1, 4, 1), 0),
    ((1, 4, 2), 0, (3, 2, 1), 1),
    ((1, 3, 1), 0, (5, 1, 1), 3),
]


def emptied(state: HeldState) -> HeldState:
    """The same places, with numbers that are nowhere."""
    tensors = {k: {n: torch.full_like(t, -1) for n, t in by.items()} for k, by in state.tensors.items()}
    return state._replace(
        tensors=tensors, buffers={n: torch.full_like(b, -1) for n, b in state.buffers.items()}
    )


@pytest.mark.parametrize(("before", "zero_before", "after", "zero_after"), MOVES)
@pytest.mark.parametrize("name", NETS)
def test_any_mesh_and_zero_stage_reads_what_any_other_wrote(
    name: str, before, zero_before: int, after, zero_after: int, tmp_path: Path
):
    with torch.device("meta"):
        net = build_model(NETS[name].model_copy(update={"mlp": 48}))
    state = write(tmp_path / "step", net, before, zero_before)
    catalogue = Catalogue(read_contents(tmp_path / "step"))
    for mesh in ranks(*after):
        buffers = {"count": torch.tensor(5), "mean": torch.arange(3.0)}
        expected = held_state(net, state, mesh, zero_after, buffers)
        found = emptied(expected)
        load_state(catalogue, found, shards(net, mesh))
        torch.testing.assert_close(found.tensors, expected.tensors, rtol=0, atol=0)
        torch.testing.assert_close(found.buffers, buffers, rtol=0, atol=0)
