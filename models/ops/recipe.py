"""Describes a variant of Translution: the sources and banks of its queries, keys and values.

Every variant is one operator. A pair's query, key and value are *operands*: rows of a source [N, B, C],
as they are or multiplied by the bank entry of the pair's offset. Logits sum ⟨query, key⟩ over the logit
segments; each value segment is aggregated separately:

    full Translution     logits (q, k), value (v): each a bank over x, or a shared projection of x
    α-Translution        logits (dense q, dense k) + (relative q, relative k), values dense and relative
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Kernel = Literal["auto", "loop", "grouped", "fused"]
Importance = Literal[
    "class", "received"
]  # of a token: the class token's attention, or the mean of all queries'


@dataclass(frozen=True)
class Operand:
    """Rows of `sources[source]`, multiplied by `banks[bank]` unless bank is None."""

    source: int
    bank: int | None = None


class Combine(Protocol):
    """Merges partial softmaxes, where the pairs of one softmax are computed in several places."""

    def merge(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """From the lse[N, B, H] and normalised outs[N, B, H, E] of the pairs here to those of all pairs."""
        ...

    def sum_gradients(self, grad_sources: list[Tensor], grad_banks: list[Tensor]) -> list[Tensor]:
        """The gradients of the sources [N, B, C], summed over all places; those of banks [K, C, D] are
        left as they are, or summed in place where every place holds the same bank."""
        ...


class AllPairs:
    """Nothing to merge: all pairs are computed here."""

    def merge(self, lse: Tensor, outs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return lse, outs

    def sum_gradients(self, grad_sources: list[Tensor], grad_banks: list[Tensor]) -> list[Tensor]:
        return grad_sources


@dataclass(frozen=True)
class Recipe:
    """What the pass over the pairs computes, and how.

    logits     the query and the key operand of each logit segment
    values     the operand of each value segment
    heads      H; the width of every operand is H times its head width
    scale      of the summed logits
    keep       save the projected q, k, v of all pairs for backward (N²·B·D numbers each) instead of
               recomputing them
    workspace  limit in bytes of a chunk's temporaries; None: by device, see `workspace_bytes`
    compiled   fuse the element-wise stage with torch.compile, in chunks of whole classes
    kernel     which kernels visit the pairs; "auto" is the fastest for the device and the shapes
    """

    logits: tuple[tuple[Operand, Operand], ...]
    values: tuple[Operand, ...]
    heads: int
    scale: float
    keep: bool = False
    workspace: int | None = None
    compiled: bool = False
    kernel: Kernel = "auto"


def workspace_bytes(workspace: int | None, device_type: str) -> int:
    """The limit of a chunk's temporaries: as given, else 64 MiB on the CPU and 1 GiB on a card, which wants
    few, large kernels."""
    if workspace is not None:
        return workspace
    return 64 << 20 if device_type == "cpu" else 1 << 30
