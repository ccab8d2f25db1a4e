"""Gradients of a sharded net: their sum over replicas while backward still runs, and their norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.parts.net import PARTS, part_of
from parallel.mesh import Mesh

BUCKET_BYTES = 25 << 20  # DistributedDataParallel's; a larger gradient is a bucket of its own


class GradientSum:
    """All-reduces `grad` of parameters over `group`, in place, bucket by bucket, each as soon as backward has
    its gradients.

    A bucket is one coalesced collective over gradients where they lie, without a copy. Buckets depend on
    the order of `parameters` alone, and are sent in the same order in every step: a resumed run adds up the
    same numbers in the same order (DistributedDataParallel regroups them after its first step).

    How often backward adds to each gradient, more than once for a parameter that several recomputed layers
    share, is counted in the first backward pass; until then nothing overlaps.
    """

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
        self._group = group
        self._buckets = list(_buckets(parameters))
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._expected: dict[nn.Parameter, int] | None = None
        self._added: dict[nn.Parameter, int] = dict.fromkeys(self._bucket_of, 0)
        self._missing: list[int] = []  # of each bucket: gradients that this backward pass has yet to add
        self._sent: list[dist.Work] = []
        self._overlapping = False
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._note)

    def before_backward(self, last: bool) -> None:
        """Call before each backward pass; gradients are sent in the `last` of a step."""
        if self._expected is None and any(self._added.values()):
            self._expected = dict(self._added)
        self._added = dict.fromkeys(self._added, 0)
        self._overlapping = last and self._expected is not None
        if self._expected is not None:
            self._missing = [sum(self._expected[p] for p in bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Sends what is left, and waits; on CUDA only the device waits."""
        while len(self._sent) < len(self._buckets):
            self._send_next()
        for work in self._sent:
            work.wait()
        self._sent.clear()
        self._overlapping = False

    def _note(self, parameter: nn.Parameter) -> None:
        """Backward has added to this parameter's gradient."""
        self._added[parameter] += 1
        if not self._overlapping:
            return
        number = self._bucket_of[parameter]
        assert number >= len(self._sent), "a gradient was added to after it had been sent"
        self._missing[number] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] <= 0:
            self._send_next()

    def _send_next(self) -> None:
        """In order of the buckets, so that all ranks send the same."""
        gradients: list[Tensor] = []
        for parameter in self._buckets[len(self._sent)]:
            if parameter.grad is None:  # every rank must send the same tensors
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        options = dist.AllreduceCoalescedOptions()
        options.asyncOp = True
        self._sent.append(self._group.allreduce_coalesced(gradients, options))


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """From the last parameter to the first, as backward goes; each of one dtype."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in reversed(parameters):
        own = parameter.numel() * parameter.element_size()
        if bucket and (size + own > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += own
    if bucket:
        yield bucket


def mean_over_data(loss: Tensor, votes: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The mean of the loss, and the sum of the votes, over the data axis."""
    return _reduce_together(loss / mesh.data, votes, mesh.group("data"))


def mean_over_world(loss: Tensor, votes: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The mean of the loss, and the sum of the votes, over all ranks."""
    data, model = mesh.group("data"), mesh.group("model")
    group = dist.group.WORLD if data and model else data or model
    return _reduce_together(loss / mesh.world, votes, group)


def gradient_norm(parameters: list[nn.Parameter], votes: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The 2-norm of the whole net's gradient, a scalar that is the same on every rank, and the sum of the
    votes over the model-parallel group."""
    grads = [p.grad for p in parameters if p.grad is not None and counted(p, mesh)]
    norm = nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=parameters[0].device)
    group = mesh.group("model")
    if group is None:
        return norm, votes
    square, votes = _reduce_together(norm.square(), votes, group)
    return square.sqrt(), votes


def part_norms(model: nn.Module, mesh: Mesh) -> Tensor:
    """The 2-norm of the gradient of each of PARTS, float32 [5], the same on every rank."""
    grads: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and counted(parameter, mesh):
            grads[part_of(name)].append(parameter.grad)
    zero = torch.zeros((), device=next(model.parameters()).device)
    norms = [nn.utils.get_total_norm(own).float() if own else zero for own in grads.values()]
    squares, group = torch.stack(norms).square(), mesh.group("model")
    if group is not None:
        dist.all_reduce(squares, group=group)
    return squares.sqrt()


def _reduce_together(number: Tensor, votes: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The sums of a scalar and of the votes over `group`, in one all-reduce."""
    if group is None:
        return number, votes
    both = torch.cat([number.reshape(1), votes.to(number.dtype)])
    dist.all_reduce(both, group=group)
    return both[0], both[1:].to(votes.dtype)


def counted(parameter: nn.Parameter, mesh: Mesh) -> bool:
    """Whether this rank counts the parameter in sums over the model-parallel group."""
    return mesh.model_rank == 0 or getattr(parameter, "model_parallel", False)
