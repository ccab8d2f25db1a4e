"""The cost of a module without formulas: one forward and one backward pass on the meta device."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, UntypedStorage, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.dealing import deal
from models.mixers.cost import Cost, Load
from models.ops.device import stands_for
from models.ops.kernel_cost import WORKSPACES

MOST_SAMPLES = 16


def measured_cost(module: nn.Module, load: Load) -> Cost:
    """See `Mixer.cost`; `module`, with its `dim` and `num_tokens` or `input_shape`, is on the meta device. It
    may have further inputs, of `further_shapes`, and several outputs.

    Bytes are measured in float32 and scaled to the width of products. More than MOST_SAMPLES samples are
    extrapolated from MOST_SAMPLES and half as many: their cost is linear, but for a workspace that is used
    up. Raises whatever the module raises on the meta device, for instance where it reads values.
    """
    if load.samples <= MOST_SAMPLES:
        return _measure(module, load)
    half, most = (_measure(module, replace(load, samples=n)) for n in (MOST_SAMPLES // 2, MOST_SAMPLES))
    steps = (load.samples - MOST_SAMPLES) / (MOST_SAMPLES // 2)

    def extrapolate(low: int, high: int) -> int:
        return round(high + (high - low) * steps)

    fields: dict[str, Any] = {
        key: extrapolate(getattr(half, key), value)
        for key, value in vars(most).items()
        if isinstance(value, int)
    }
    sources = zip(half.source_gradients, most.source_gradients, strict=True)
    return Cost(**fields, source_gradients=tuple(extrapolate(low, high) for low, high in sources))


def _measure(module: nn.Module, load: Load) -> Cost:
    part = part_of(module, load.head_parts, load.pair_parts, load.part)
    shape: tuple[int, ...] = getattr(part, "input_shape", None) or (part.num_tokens, part.dim)
    shape = (load.samples, *shape)
    shapes = [shape, *((load.samples, *each) for each in getattr(part, "further_shapes", ()))]
    inputs = [torch.empty(each, device="meta", requires_grad=True) for each in shapes]
    merging, live = _MergingRecorder(), LiveBytes()
    head_inputs: list[int] = []
    if hasattr(part, "head_input"):
        part.combine = merging  # pyright: ignore[reportAttributeAccessIssue]
        part.get_submodule("head_input").register_forward_hook(
            lambda *call: head_inputs.append(
                call[2].numel()
                * (load.sizes.weight if isinstance(call[1][0], nn.Parameter) else load.sizes.residual)
            )
        )
    weights = {_identity(p) for p in part.parameters()}
    saved: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _identity(tensor) not in weights:
            saved[_identity(tensor)] = tensor.untyped_storage()
        return tensor

    with (
        stands_for("cpu" if load.cpu else "cuda"),
        flop_counter() as forward,
        FusedAttention(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        y = part(*inputs)
    kept = sum(storage.nbytes() for storage in saved.values())
    for storage in saved.values():
        live.add(storage)
    saved.clear()
    outputs = [out for out in (y if isinstance(y, tuple) else (y,)) if out.requires_grad]
    gradients = [torch.empty_like(out) for out in outputs]
    with stands_for("cpu" if load.cpu else "cuda"), flop_counter() as backward, live:
        torch.autograd.backward(outputs, gradients)
    work = live.peak(without=[p.grad for p in part.parameters() if p.grad is not None]) - kept
    flops, sizes = forward.get_total_flops(), load.sizes
    return Cost(
        forward=flops,
        recomputed=max(0, backward.get_total_flops() - 2 * flops),
        saved=kept * sizes.product // 4,
        work=max(0, work) * sizes.product // 4,
        head_gradients=sum(head_inputs),
        partials=merging.partials * sizes.statistics,
        source_gradients=tuple(numbers * sizes.statistics for numbers in merging.sources),
    )


def flop_counter() -> FlopCounterMode:
    """torch's, with the formulas below."""
    return FlopCounterMode(display=False, custom_mapping=FLOPS)


def _attention_flops(products: int, q: Sequence[int], k: Sequence[int], causal: bool) -> int:
    """Of products over pairs of q[B, H, N, E] and k[B, H, M, E]; a kernel leaves out masked ones."""
    B, H, N, E = q
    pairs = N * (N + 1) // 2 if causal else N * k[2]
    return products * 2 * B * H * pairs * E


def _add_product(out: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _attention(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    return _attention_flops(2, q, k, causal)


def _attention_backward(
    grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, dropout: float, causal: bool, **_: Any
) -> int:
    return _attention_flops(5, q, k, causal)


def _convolution_backward(grad: Any, x: Any, weight: Any, *others: Any, **_: Any) -> int:
    """As much as forward for either gradient, in groups too, which torch's formula overlooks."""
    wanted = others[-1]
    rows = x if others[4] else grad  # transposed
    return 2 * (wanted[0] + wanted[1]) * rows[0] * math.prod(rows[2:]) * math.prod(weight)


FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: _add_product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
"""FLOPs, from shapes, of what torch's counter does not know or counts otherwise than a kernel works."""


class FusedAttention(TorchFunctionMode):
    """On the meta device torch decomposes attention into its N² weights; kernels on real devices do not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            options = dict(zip(("attn_mask", "dropout_p", "is_causal"), args[3:], strict=False)) | kwargs
            mask = options.get("attn_mask")
            if not options.get("enable_gqa") and (mask is None or not mask.requires_grad):
                kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
                dropout, causal = options.get("dropout_p", 0.0), options.get("is_causal", False)
                options = {"attn_mask": mask, "scale": options.get("scale")}
                return kernel(*args[:3], dropout, causal, **options)[0]
        return func(*args, **kwargs)


def part_of(module: nn.Module, head_parts: int, pair_parts: int, number: int | None = None) -> Any:
    """A copy with one part of the heads, and of the pairs and the bank entries that they use: the part of
    this number, or the one with most pairs."""
    schedule = getattr(module, "schedule", None)
    part: Any = copy.deepcopy(module, {} if schedule is None else {id(schedule): schedule})
    axes = part.axes() if hasattr(part, "axes") else {}
    divided = part.divided_axes() if axes else set()
    entries: int | None = None
    if schedule is not None and pair_parts > 1 and "entry" in divided:
        shares = deal(schedule, pair_parts)
        share = max(shares, key=lambda share: share.pairs) if number is None else shares[number]
        part.schedule = share.schedule(schedule)
        entries = None if share.entries is None else len(share.entries)
    if "head" in divided:
        part.heads //= head_parts
    for name, dims in axes.items():
        shape = list(part.get_parameter(name).shape)
        for dim, axis in dims.items():
            if axis == "head":
                shape[dim] //= head_parts
            elif entries is not None:
                shape[dim] = entries
        path, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(path), leaf, nn.Parameter(torch.empty(shape, device="meta")))
    return part


class _MergingRecorder:
    """A `Combine` that merges nothing and counts what it is given."""

    def __init__(self) -> None:
        self.partials = 0
        self.sources: list[int] = []

    def merge(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.partials += 2 * lse.numel() + sum(out.numel() for out in outs)
        return lse, outs

    def sum_gradients(self, grad_sources: list[Tensor], grad_banks: list[Tensor]) -> list[Tensor]:
        self.sources += [grad.numel() for grad in grad_sources]
        return grad_sources


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages that operators make while it is on, and of those that were added."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}  # storage → its number
        self._changes: list[tuple[int, int]] = []  # number, bytes
        self._count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch's compiler is loaded, which takes a second

    def add(self, storage: UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._live or not size:
            return
        self._count += 1
        number = self._live[identity] = self._count
        self._changes.append((number, size))

        def release() -> None:
            self._live.pop(identity, None)
            self._changes.append((number, -size))

        weakref.finalize(storage, release)

    @property
    def now(self) -> int:
        """How many changes there were so far: a moment for `peak`."""
        return len(self._changes)

    def alive(self, without: list[Tensor], at: int) -> int:
        """What was alive at a moment, leaving out the storages of some tensors."""
        return sum(self._sizes(without, at))

    def peak(self, without: list[Tensor]) -> int:
        """The most that was alive at once, leaving out the storages of some tensors."""
        return max(accumulate(self._sizes(without)), default=0)

    def peak_after(self, without: list[Tensor], at: int) -> int:
        """The same, of what came after a moment, above what was alive then."""
        sizes, before = list(self._sizes(without)), len(list(self._sizes(without, at)))
        return max(accumulate(sizes[before:], initial=0))

    def _sizes(self, without: list[Tensor], stop: int | None = None) -> Iterator[int]:
        left_out = {self._live.get(_identity(tensor)) for tensor in without}
        return (size for number, size in self._changes[:stop] if number not in left_out)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf.untyped_storage())
        if func in WORKSPACES:
            inside = WORKSPACES[func](*args, **(kwargs or {}))
            self._count += 1
            self._changes += [(self._count, inside), (self._count, -inside)]
        return out


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
