"""The mesh: coordinates of ranks, process groups, and meshes that do not factor."""

import pytest
import torch
import torch.distributed as dist

from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh, mesh_of
from parallel.processes import join_processes
from parallel.spawn import run_processes


def test_ranks_count_tensor_first_then_offset_then_data():
    config = ParallelConfig(offset=2, tensor=2)
    places = [mesh_of(config, 8, rank) for rank in range(8)]
    assert [(p.data_rank, p.offset_rank, p.tensor_rank) for p in places] == [
        (d, o, t) for d in range(2) for o in range(2) for t in range(2)
    ]
    assert {(p.data, p.model, p.world) for p in places} == {(2, 4, 8)}
    assert str(places[0]) == "data 2 × offset 2 × tensor 2"


@pytest.mark.parametrize(
    ("values", "world", "message"),
    [
        ({"offset": 3}, 4, r"offset=3 × parallel.tensor=1 = 3 does not divide the 4 processes"),
        ({"offset": 2, "tensor": 4}, 4, r"= 8 does not divide the 4 processes"),
        ({"data": 4, "offset": 2}, 4, r"parallel.data=4 × offset 2 × tensor 1 are not the 4 .*; data=2 or"),
        ({"zero": 1}, 4, "the torch engine has no ZeRO; use parallel.engine=deepspeed"),
        ({"offload_optimizer": True}, 1, "only parallel.engine=deepspeed offloads"),
    ],
)
def test_a_mesh_that_cannot_run_is_refused_with_its_values(values, world, message):
    with pytest.raises(UserError, match=message):
        mesh_of(ParallelConfig(**values), world)


def test_groups_sum_over_their_axis_only():
    """Every rank sends 10^rank, so that a sum's digits tell who took part."""
    sums = run_processes(sums_by_axis, 4, seconds=60)
    assert [each["tensor"] for each in sums] == [11, 11, 1100, 1100]
    assert [each["data"] for each in sums] == [101, 1010, 101, 1010]
    assert [each["model"] for each in sums] == [11, 11, 1100, 1100]
    assert [each["offset"] for each in sums] == [None] * 4
    assert [each["offset after"] for each in sums] == [101, 1010, 101, 1010]


def sums_by_axis():
    join_processes(torch.device("cpu"))
    mesh = join_mesh(ParallelConfig(tensor=2))
    sums = {axis: sum_over(mesh, axis) for axis in ("tensor", "data", "model", "offset")}
    forget_mesh()
    mesh = join_mesh(ParallelConfig(tensor=2, offset=2))
    return sums | {"offset after": sum_over(mesh, "offset")}


def sum_over(mesh: Mesh, axis: str) -> int | None:
    group = mesh.group(axis)
    if group is None:
        return None
    number = torch.tensor(10**mesh.rank)
    dist.all_reduce(number, group=group)
    return int(number)


def test_a_single_process_has_no_groups():
    assert join_mesh(ParallelConfig()) == Mesh()
    assert Mesh().group("model") is None
