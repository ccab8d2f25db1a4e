"""Follows every operator of a rehearsed step: what it allocates, its FLOPs, and the kernels it launches."""

from __future__ import annotations

import sys
from collections import Counter
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from models.mixers.measured_cost import FLOPS
from models.ops.cards import HOST_LAUNCH, Card
from models.ops.count import launches
from models.ops.kernel_cost import COSTS, WORKSPACES
from parallel.errors import UserError
from parallel.rehearsal.memory import Allocations

_aten = torch.ops.aten
UNSEEN = {"prim", "c10d", "_c10d_functional", "symm_mem"}  # questions, and collectives
_FLOPS = {packet: shape_wrapper(formula) for packet, formula in FLOPS.items()}


class CannotRehearse(UserError):
    """A run that may be right, but cannot be rehearsed."""


class Work(NamedTuple):
    """What a rank computes: counted, not measured.

    flops        of matrix products and attention, by torch's formulas; those of our own kernels by theirs
    kernels      launches; `by_operator` the same, most first
    seconds      the kernels' on the card; 0 without one
    launching    seconds in which the card waits for the host to launch kernels shorter than a launch
    """

    flops: int
    kernels: int
    by_operator: dict[str, int]
    seconds: float
    launching: float

    def minus(self, before: Work) -> Work:
        """What was done since an earlier moment."""
        launched = Counter(self.by_operator)
        launched.subtract(before.by_operator)
        return self._replace(
            flops=self.flops - before.flops,
            kernels=self.kernels - before.kernels,
            by_operator={name: count for name, count in launched.items() if count},
            seconds=self.seconds - before.seconds,
            launching=self.launching - before.launching,
        )

    def plus(self, more: Work, times: int) -> Work:
        """With `more` done so many times in addition."""
        launched = Counter(self.by_operator)
        launched.update({name: times * count for name, count in more.by_operator.items()})
        return Work(
            self.flops + times * more.flops,
            self.kernels + times * more.kernels,
            dict(launched.most_common()),
            self.seconds + times * more.seconds,
            self.launching + times * more.launching,
        )


class Recorder(TorchDispatchMode):
    """What happens while it is on; it goes above the fake tensors' mode, or around real ones.

    memory     what is allocated
    reads      values that a library asked for and was not given: where, and how often
    """

    def __init__(self, memory: Allocations, card: Card | None) -> None:
        super().__init__()
        self.memory, self.card = memory, card
        self.reads: Counter[str] = Counter()
        self.restart()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch's compiler is loaded, which takes a second

    def restart(self) -> None:
        """Begins to count work anew; what is alive stays."""
        self.flops = 0
        self.seconds = self.launching = 0.0
        self.by_operator: Counter[str] = Counter()

    def work(self) -> Work:
        """Since the last restart."""
        launched = dict(self.by_operator.most_common())
        return Work(self.flops, sum(launched.values()), launched, self.seconds, self.launching)

    def add(self, work: Work) -> None:
        """Counts work that is not done again."""
        self.flops += work.flops
        self.seconds += work.seconds
        self.launching += work.launching
        self.by_operator.update(work.by_operator)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in UNSEEN:
            return func(*args, **kwargs)
        try:
            out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return self._unknown_value(func, args)
        name = func.overloadpacket.__name__
        self._count(func, name, args, kwargs, out)
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.memory.mark_if_new(leaf, "tables")
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.memory.watch(leaf, name)
        if func in WORKSPACES:
            self.memory.inside(name, WORKSPACES[func](*args, **kwargs))
        return out

    def _count(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        costs = launches(func, args, kwargs, out)
        self.flops += product_flops(func, args, kwargs, out)
        if func in COSTS:
            self.flops += sum(cost.flops for cost in costs)
        if costs:
            self.by_operator[name] += len(costs)
        if self.card is not None:
            for cost in costs:
                taken = self.card.seconds(cost)
                self.seconds += taken
                self.launching += max(0.0, HOST_LAUNCH - taken)

    def _unknown_value(self, func: Any, args: Any) -> Any:
        """A value is asked for, and there is none: 0 for DeepSpeed, whose only question is whether the
        gradients are finite; anything else cannot be rehearsed."""
        where, deepspeed = _asked_by()
        if deepspeed and func is _aten._local_scalar_dense.default:
            self.reads[where] += 1
            dtype = args[0].dtype
            return 0.0 if dtype.is_floating_point else False if dtype is torch.bool else 0
        path = f" in {self.memory.module}" if self.memory.module else ""
        raise CannotRehearse(
            f"{where}{path}: reads values of a tensor ({func}), and a rehearsal has only shapes; "
            "such a net can be planned and run, not rehearsed"
        )


def product_flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of a matrix product or of attention; 0 for anything else, our own kernels among it."""
    packet = func.overloadpacket
    name = packet.__name__
    if packet in _FLOPS:
        return _FLOPS[packet](*args, **kwargs)
    if name in ("baddbmm", "baddbmm_"):
        return 2 * args[1].numel() * args[2].shape[-1]
    if name == "_grouped_mm":  # rows · C · D, or the sum over rows of the entries' gradients
        return 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[-1]
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    return 0


def _asked_by() -> tuple[str, bool]:
    """The line outside of torch that is running, and whether it is DeepSpeed's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_machinery(frame.f_code):
        frame = frame.f_back
    path = frame.f_code.co_filename
    return f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}", "/deepspeed/" in path


def _is_machinery(code: CodeType) -> bool:
    own = code.co_filename == __file__ or code.co_name == "__torch_function__"
    return own or "/torch/" in code.co_filename
