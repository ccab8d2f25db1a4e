"""The world of a rehearsal: one rank of a job that does not exist, on fake tensors.

Fake tensors have shapes and no numbers; the fake process group returns at once and sends nothing. What cannot
run so has the smallest stand-in that lets the real code pass, each named in `STAND_INS`.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from models.initial import shapes_only
from models.mixers.measured_cost import FusedAttention
from models.ops.cards import Card, meta_is
from models.ops.walk import chunks
from models.ops.walk.stage import stage
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.rehearsal.memory import Allocations
from parallel.rehearsal.recorder import Recorder
from parallel.rehearsal.repeats import repeated_walks
from parallel.sharding.offload import HostOffload

STAND_INS = {
    "card": "the card's kernels are chosen and counted, on fake tensors whose device is called cpu",
    "autocast": "bf16: which operators run in bfloat16 is the CPU's list, not CUDA's",
    "compiled": "mixer.compiled: rehearsed without torch.compile, so with more kernels than the run has",
    "deepspeed": "DeepSpeed runs on its CPU accelerator: no streams, so nothing overlaps",
    "host": "host memory is the device's here; what is offloaded to it is known, and left out of the peak",
}


@contextmanager
def one_rank(
    parallel: ParallelConfig, world: int, rank: int, card: Card | None
) -> Iterator[tuple[Mesh, Recorder]]:
    """Everything inside happens to one rank of `world`; gives its mesh and the record of what it does.

    The process must have no process groups. On `card` the operator takes its kernels; without one those of
    the CPU.
    """
    recorder = Recorder(Allocations(), card)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        mesh = join_mesh(parallel)
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
            stack.enter_context(mock.patch.object(chunks, "stage", return_value=stage(False)))
            stack.enter_context(mock.patch.object(dist.ProcessGroup, "allreduce_coalesced", _one_by_one()))
            stack.enter_context(shapes_only())
            if parallel.engine == "deepspeed":
                stack.enter_context(_deepspeed(rank, world))
                stack.enter_context(_equal_parts())
            if card is not None:
                stack.enter_context(meta_is(card, "cpu"))
                stack.enter_context(FusedAttention())
                stack.enter_context(mock.patch.object(HostOffload, "hooks", _save_on_host(recorder.memory)))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(recorder)
            stack.enter_context(repeated_walks(recorder))
            stack.enter_context(_module_paths(recorder.memory))
            yield mesh, recorder
    finally:
        forget_mesh()
        dist.destroy_process_group()


def _apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In place of nn.Module._apply, which swaps fake parameters for others and cannot where someone watches
    them: gives them other data."""
    for child in self.children() if recurse else ():
        _apply(child, change)
    for parameter in self._parameters.values():
        if parameter is not None:
            new = change(parameter.data)
            if new is not parameter.data and (new.dtype, new.device) != (parameter.dtype, parameter.device):
                parameter.data = new
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = change(buffer)
    return self


def _one_by_one() -> Callable[..., Any]:
    """In place of the coalesced all-reduce, which does not take fake tensors."""
    all_reduce = dist.ProcessGroup.allreduce

    def coalesced(group: dist.ProcessGroup, tensors: list[Tensor], options: Any) -> Any:
        return [all_reduce(group, [tensor]) for tensor in tensors][-1]

    return coalesced


def _save_on_host(memory: Allocations) -> Callable[..., Any]:
    """In place of HostOffload's hooks, for which all is on the CPU: copies that count as the host's."""

    def to_host(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        memory.mark([copy], "host")
        return copy

    return lambda offload: torch.autograd.graph.saved_tensors_hooks(to_host, torch.clone)


@contextmanager
def _equal_parts() -> Iterator[None]:
    """While the context lasts, equal parts of a flat fake tensor are one view: they differ only in where they
    begin, which nothing reads. ZeRO-3 makes one for every data rank whenever it gathers a weight or scatters
    a gradient."""
    narrow, get = Tensor.narrow, Tensor.__getitem__

    def shared(flat: Tensor, length: int, cut: Callable[[], Tensor]) -> Tensor:
        parts = vars(flat).setdefault("_equal_parts", {})
        part = parts[length]() if length in parts else None  # weak, or a tensor would keep itself alive
        if part is None or part.untyped_storage()._cdata != flat.untyped_storage()._cdata:
            part = cut()
            parts[length] = weakref.ref(part)
        return part

    def narrow_shared(tensor: Tensor, dim: int, start: Any, length: int) -> Tensor:
        def cut() -> Tensor:
            return narrow(tensor, dim, start, length)

        return shared(tensor, length, cut) if _is_flat(tensor) else cut()

    def get_shared(tensor: Tensor, index: Any) -> Tensor:
        if isinstance(index, slice) and _is_flat(tensor):
            length = len(range(*index.indices(len(tensor))))
            return shared(tensor, length, lambda: get(tensor, index))
        return get(tensor, index)

    with (
        mock.patch.object(Tensor, "narrow", narrow_shared),
        mock.patch.object(Tensor, "__getitem__", get_shared),
    ):
        yield


def _is_flat(tensor: Tensor) -> bool:
    """Whether it is a fake vector whose parts have no gradients of their own."""
    plain = type(tensor) is FakeTensor and tensor.dim() == 1
    return plain and not (tensor.requires_grad and torch.is_grad_enabled())


@contextmanager
def _deepspeed(rank: int, world: int) -> Iterator[None]:
    """What DeepSpeed asks of its environment. Its check that ranks have equal numbers still sends them, but
    takes them to be equal, for nothing arrives; comparing the ranks' collectives is the better check."""
    from parallel.engine.deepspeed_engine import import_deepspeed

    own = {"LOCAL_RANK": "0", "RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    with mock.patch.dict(os.environ, own):
        import_deepspeed()
        from deepspeed.runtime.zero import utils

        def send_length(numbers: list[int]) -> None:
            dist.broadcast(torch.tensor(len(numbers)), src=0)

        def send_numbers(numbers: list[int]) -> list[int]:
            dist.broadcast(torch.tensor(numbers), src=0)
            return numbers

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(utils, "assert_lst_len_same_as_other_ranks", send_length))
            stack.enter_context(mock.patch.object(utils, "get_lst_from_rank0", send_numbers))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield


@contextmanager
def _module_paths(memory: Allocations) -> Iterator[None]:
    """Notes the path of the module whose forward runs."""
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    above: list[str] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        above.append(memory.module)
        memory.module = getattr(module, "_rehearsed_as", memory.module)

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        memory.module = above.pop()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def name_modules(net: nn.Module) -> None:
    """Lets records say in which module of `net` they were made."""
    for path, module in net.named_modules():
        module._rehearsed_as = path  # pyright: ignore


def fake_device() -> torch.device:
    """Where a rehearsal's tensors pretend to be."""
    return torch.device("cpu")
