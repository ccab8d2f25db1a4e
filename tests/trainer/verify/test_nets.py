"""The small nets of `translution verify --net` train alike on two processes."""

import pytest

from parallel.errors import UserError
from parallel.mesh import ParallelConfig
from parallel.spawn import run_processes
from trainer.verify.nets import NETS, net_named
from trainer.verify.verify import LayoutResult, compare

TENSOR = ParallelConfig(tensor=2)
SHARDED = ParallelConfig(engine="deepspeed", zero=3, activations="block")
# Positions whose parameters all heads share, whose parameters are of one head each, and heads of three kinds.
DIFFERENT = ("shaw", "gpsa", "structure")


def compare_nets(names: list[str], layouts: list[ParallelConfig]) -> dict[str, list[LayoutResult]]:
    """Run in each process."""
    return {name: compare(net_named(name), layouts) for name in names}


def test_positions_and_shifts_train_alike_over_heads_and_replicas():
    names, layouts = list(DIFFERENT), [TENSOR, SHARDED]
    results = run_processes(compare_nets, 2, names, layouts, seconds=100)[0]
    assert list(results) == names
    assert not [(name, row) for name, rows in results.items() for row in rows if not row.agrees]


@pytest.mark.parametrize(
    "names",
    [["tost", "rwkv"], pytest.param(["tost-text", "xcit", "bixt", "combiner-axial"], marks=pytest.mark.soak)],
    ids=["few", "more"],
)
def test_nets_with_batch_norms_latents_and_shifts_train_alike_over_heads_and_replicas(names: list[str]):
    results = run_processes(compare_nets, 2, names, [TENSOR, SHARDED], seconds=100)[0]
    assert list(results) == names
    assert not [(name, row) for name, rows in results.items() for row in rows if not row.agrees]


@pytest.mark.parametrize("name", NETS)
def test_every_net_can_be_built(name: str):
    assert net_named(name).layer_specs()


def test_an_unknown_net_is_refused():
    with pytest.raises(UserError, match=r"--net shew: one of translution, attention"):
        net_named("shew")
