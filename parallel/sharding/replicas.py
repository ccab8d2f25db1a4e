"""Parameters that several ranks hold must be equal to the bit; a checksum tells when they are not."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Mesh

_Difference = tuple[str, set[int]]
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def differing_replica(net: nn.Module, mesh: Mesh) -> str | None:
    """Which parameter differs between ranks that should hold the same, and on which rank; None if none does.

    Collective; reads every weight once. Compared are the replicas of the data axis, except for what
    ZeRO-3 has partitioned over it, and over the model-parallel group what is not sharded there. The
    ranks whose checksums are in the minority are named; between two, either may be wrong. The answer is
    the same on every rank.
    """
    if mesh.world == 1:
        return None
    replicated = {name: p for name, p in net.named_parameters() if not hasattr(p, "ds_id")}
    whole = {name: p for name, p in replicated.items() if not getattr(p, "model_parallel", False)}
    own = []
    for axis, parameters in (("data", replicated), ("model", whole)):
        group = mesh.group(axis)
        if group is not None and parameters and (found := _difference(parameters, group)):
            own.append(found)
    everyone: list[list[_Difference]] = [[] for _ in range(mesh.world)]
    dist.all_gather_object(everyone, own)
    differences = [each for found in everyone for each in found]
    if not differences:
        return None
    name = differences[0][0]
    suspects = [ranks for other, ranks in differences if other == name]
    both = set.intersection(*suspects)  # a rank that differs along both axes
    ranks = ", ".join(map(str, sorted(both or suspects[0])))
    return f"{name} differs on rank {ranks}" if len(both) == 1 else f"{name} differs between ranks {ranks}"


def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bit patterns, int64; a single changed element always changes it."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def _difference(parameters: dict[str, nn.Parameter], group: dist.ProcessGroup) -> _Difference | None:
    """Collective over `group`: the first parameter that differs in it, and the ranks in the minority, or all
    of them where no side has it."""
    own_P = torch.stack([checksum(parameter) for parameter in parameters.values()])
    ends_2P = torch.cat((own_P, -own_P))  # greatest and least
    dist.all_reduce(ends_2P, dist.ReduceOp.MAX, group=group)
    greatest, least = ends_2P.chunk(2)
    if torch.equal(greatest, -least):
        return None
    gathered = [torch.empty_like(own_P) for _ in range(group.size())]
    dist.all_gather(gathered, own_P, group=group)
    odd = int((greatest != -least).nonzero()[0])
    sums = [int(each[odd]) for each in gathered]
    most = max(sums, key=sums.count)
    ranks = dist.get_process_group_ranks(group)
    minority = {rank for rank, each in zip(ranks, sums, strict=True) if each != most}
    return list(parameters)[odd], minority if len(minority) < len(ranks) / 2 else set(ranks)
