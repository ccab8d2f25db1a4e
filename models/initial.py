"""Initial weights that depend on (seed, parameter name, bank entry) only.

Whoever holds a part of a net draws just that part, and gets the numbers that every other holder of
it gets, on any mesh (DESIGN section 4).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.gpt import EMBEDDING_STD, GPT
from models.mixers.translution import Translution
from models.vit import ViT


@dataclass(frozen=True)
class Draw:
    """How a parameter of `shape` begins: uniform within ±bound, normal with deviation `std`, or the
    constant `value`; a bank draws each entry (first dimension) on its own."""

    name: str
    shape: tuple[int, ...]
    bound: float = 0.0
    std: float = 0.0
    value: float = 0.0
    by_entry: bool = False

    def __call__(self, seed: int, entries: Sequence[int] | None = None) -> Tensor:
        """The whole parameter in float32 on the CPU; of a bank only `entries`, if given."""
        if not self.by_entry:
            return self._numbers(seed, self.name, self.shape)
        entries = range(self.shape[0]) if entries is None else entries
        return torch.stack([self._numbers(seed, f"{self.name}[{e}]", self.shape[1:]) for e in entries])

    def _numbers(self, seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
        if not self.bound and not self.std:
            return torch.full(shape, self.value)
        digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
        if self.bound:
            return torch.empty(shape).uniform_(-self.bound, self.bound, generator=generator)
        return torch.empty(shape).normal_(0, self.std, generator=generator)


def draws(model: nn.Module) -> dict[str, Draw]:
    """How each parameter of a whole (unsharded) net begins; works on the meta device.

    Linear layers as torch draws them, banks as Translution says, norms at identity, embeddings and
    tokens normal. Raises TypeError for a parameter of an unknown kind.
    """
    return {
        name: _draw(model.get_submodule(name.rpartition(".")[0]), name, parameter)
        for name, parameter in model.named_parameters()
    }


def initialise(model: nn.Module, seed: int) -> None:
    """Gives a whole net its initial weights."""
    with torch.no_grad():
        for name, draw in draws(model).items():
            model.get_parameter(name).copy_(draw(seed))


def _draw(owner: nn.Module, name: str, parameter: Tensor) -> Draw:
    shape, leaf = tuple(parameter.shape), name.rpartition(".")[2]
    if isinstance(owner, nn.LayerNorm):
        return Draw(name, shape, value=float(leaf == "weight"))
    if isinstance(owner, nn.Linear):
        return Draw(name, shape, bound=1 / math.sqrt(owner.in_features))
    if isinstance(owner, Translution) and leaf.endswith("_bank"):
        return Draw(name, shape, bound=owner.bank_bound(parameter), by_entry=True)
    if isinstance(owner, nn.Embedding | GPT):
        return Draw(name, shape, std=EMBEDDING_STD)
    if isinstance(owner, ViT):
        return Draw(name, shape, std=1.0)  # class token and positions
    raise TypeError(f"{name} of {type(owner).__name__}: no rule for its initial value")
