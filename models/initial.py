"""Initial weights that depend on (seed, parameter name, bank entry) only.

A rank draws only the part that it holds, and gets the numbers that any other rank would, on any mesh
(DESIGN section 4).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """How a parameter begins: uniform within ±bound, normal with deviation `std`, or the constant
    `value`; a bank draws each entry (dimension 0) on its own."""

    bound: float = 0.0
    std: float = 0.0
    value: float = 0.0
    by_entry: bool = False


@dataclass(frozen=True)
class InitialValue:
    """The initial numbers of the parameter `name` of a whole net, of this shape."""

    name: str
    shape: tuple[int, ...]
    draw: Draw

    def __call__(self, seed: int, entries: Sequence[int] | None = None) -> Tensor:
        """The whole parameter in float32 on the CPU; of a bank only `entries`, if given."""
        if not self.draw.by_entry:
            return self._numbers(seed, self.name, self.shape)
        entries = range(self.shape[0]) if entries is None else entries
        return torch.stack([self._numbers(seed, f"{self.name}[{e}]", self.shape[1:]) for e in entries])

    def _numbers(self, seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
        draw = self.draw
        if not draw.bound and not draw.std:
            return torch.full(shape, draw.value)
        digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
        if draw.bound:
            return torch.empty(shape).uniform_(-draw.bound, draw.bound, generator=generator)
        return torch.empty(shape).normal_(0, draw.std, generator=generator)


def initial_values(net: nn.Module) -> dict[str, InitialValue]:
    """How each parameter of a whole (unsharded) net begins; works on the meta device.

    What a module's `draws()` says holds for its own parameters and those inside it; else linear layers
    begin as torch draws them and norms at the identity. Raises ValueError for a parameter without a rule.
    """
    declared: dict[str, Draw] = {}
    for path, module in net.named_modules():
        own = module.draws() if hasattr(module, "draws") else {}  # pyright: ignore[reportCallIssue]
        declared |= {f"{path}.{name}" if path else name: draw for name, draw in own.items()}
    return {
        name: InitialValue(name, tuple(p.shape), declared.get(name) or _default(net, name))
        for name, p in net.named_parameters()
    }


def initialise(net: nn.Module, seed: int) -> None:
    """Gives a whole net its initial weights."""
    with torch.no_grad():
        for name, value in initial_values(net).items():
            net.get_parameter(name).copy_(value(seed))


def _default(net: nn.Module, name: str) -> Draw:
    path, _, leaf = name.rpartition(".")
    owner = net.get_submodule(path)
    if isinstance(owner, nn.LayerNorm):
        return Draw(value=float(leaf == "weight"))
    if isinstance(owner, nn.Linear):
        return Draw(bound=1 / math.sqrt(owner.in_features))
    raise ValueError(
        f"{name}: no rule for its initial value; draws() of {type(owner).__name__} must give one"
    )
