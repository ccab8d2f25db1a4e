"""Initial weights that depend on (seed, parameter name, bank entry) only.

A rank draws only the part that it holds, and gets the numbers that any other rank would, on any mesh.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_shapes_only = [False]


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, initial values have their shapes but no numbers: for a rehearsal, whose tensors hold none."""
    _shapes_only.append(True)
    try:
        yield
    finally:
        _shapes_only.pop()


@dataclass(frozen=True)
class Draw:
    """Initial distribution of a parameter: uniform within ±bound, normal with deviation `std`, the constant
    `value`, or what `formula(empty parameter, generator)` gives."""

    bound: float = 0.0
    std: float = 0.0
    value: float = 0.0
    formula: Callable[[Tensor, torch.Generator], Tensor] | None = None


def truncated_normal(std: float) -> Draw:
    """Normal with deviation `std`, cut at ±2 as timm does: beyond a hundred deviations for 0.02."""

    def formula(empty: Tensor, generator: torch.Generator) -> Tensor:
        return nn.init.trunc_normal_(empty, std=std, generator=generator)

    return Draw(formula=formula)


@dataclass(frozen=True)
class InitialValue:
    """Initial value of one parameter of a whole net; banks draw each entry (dimension 0) separately."""

    name: str
    shape: tuple[int, ...]
    draw: Draw
    by_entry: bool = False

    def __call__(self, seed: int, entries: Sequence[int] | None = None) -> Tensor:
        """The whole parameter in float32 on the CPU; of a bank only `entries`, if given."""
        if _shapes_only[-1]:
            return torch.empty(self.shape if entries is None else (len(entries), *self.shape[1:]))
        if not self.by_entry:
            return self._numbers(seed, self.name, self.shape)
        entries = range(self.shape[0]) if entries is None else entries
        return torch.stack([self._numbers(seed, f"{self.name}[{e}]", self.shape[1:]) for e in entries])

    def _numbers(self, seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
        draw = self.draw
        if not draw.bound and not draw.std and draw.formula is None:
            return torch.full(shape, draw.value)
        digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
        if draw.formula is not None:
            return draw.formula(torch.empty(shape), generator)
        if draw.bound:
            return torch.empty(shape).uniform_(-draw.bound, draw.bound, generator=generator)
        return torch.empty(shape).normal_(0, draw.std, generator=generator)


def initial_values(net: nn.Module) -> dict[str, InitialValue]:
    """Initial value of each parameter of a whole (unsharded) net; works on the meta device.

    A module's `draws()` covers its own parameters and those inside it. Otherwise linear layers and
    embeddings begin as torch draws them, norms at the identity. Raises ValueError for any other parameter.
    """
    declared: dict[str, Draw] = {}
    banks: set[str] = set()
    for path, module in net.named_modules():
        prefix = f"{path}." if path else ""
        if hasattr(module, "draws"):
            own: dict[str, Draw] = module.draws()  # pyright: ignore[reportCallIssue]
            declared |= {prefix + name: draw for name, draw in own.items()}
        if hasattr(module, "axes"):
            axes: dict[str, dict[int, str]] = module.axes()  # pyright: ignore[reportCallIssue]
            banks |= {prefix + name for name, dims in axes.items() if "entry" in dims.values()}
    for name, _ in net.named_buffers():
        initial_buffer(net, name)  # raises where there is none
    return {
        name: InitialValue(name, tuple(p.shape), declared.get(name) or _default(net, name), name in banks)
        for name, p in net.named_parameters()
    }


def initialise(net: nn.Module, seed: int) -> None:
    """Gives a whole net its initial weights."""
    with torch.no_grad():
        for name, value in initial_values(net).items():
            net.get_parameter(name).copy_(value(seed))


def constants(values: Sequence[float]) -> Draw:
    """These values, in the parameter's order."""
    return Draw(formula=lambda empty, generator: torch.tensor(values).view_as(empty))


def orthogonal(gain: float | None = None) -> Draw:
    """A matrix with orthogonal rows or columns, times `gain`; null: √(rows/columns), at least 1."""

    def formula(empty: Tensor, generator: torch.Generator) -> Tensor:
        own = max(1.0, (empty.shape[0] / empty.shape[1]) ** 0.5) if gain is None else gain
        return nn.init.orthogonal_(empty, own, generator=generator)

    return Draw(formula=formula)


def initial_buffer(net: nn.Module, name: str) -> Tensor:
    """The value that `draws()` of its module declares for a buffer; raises ValueError if it declares none."""
    path, _, leaf = name.rpartition(".")
    owner = net.get_submodule(path)
    draw: Draw | None = owner.draws().get(leaf) if hasattr(owner, "draws") else None  # pyright: ignore
    if draw is None:
        of = type(owner).__name__
        raise ValueError(f"{name}: no initial value of this buffer; draws() of {of} must give one")
    return torch.full(tuple(owner.get_buffer(leaf).shape), draw.value)


def _default(net: nn.Module, name: str) -> Draw:
    path, _, leaf = name.rpartition(".")
    owner = net.get_submodule(path)
    if isinstance(owner, nn.LayerNorm):
        return Draw(value=float(leaf == "weight"))
    if isinstance(owner, nn.Linear):
        return Draw(bound=1 / math.sqrt(owner.in_features))
    if isinstance(owner, nn.Embedding):
        return Draw(std=1.0)
    raise ValueError(f"{name}: no initial value; draws() of {type(owner).__name__} must give one")
