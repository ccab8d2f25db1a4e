"""What a token mixer costs, in FLOPs and bytes, for a given load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Sizes(NamedTuple):
    """Bytes of a number: of the residual stream, of what matrix products give, of a held weight, and of
    softmax statistics."""

    residual: int = 4
    product: int = 4
    weight: int = 4
    statistics: int = 4


FLOAT32 = Sizes()


@dataclass(frozen=True)
class Load:
    """The work to be costed: a batch, and the part of it that is computed here.

    samples      sequences or images in the batch
    head_parts   the heads are split this many ways; this is one part
    pair_parts   the pairs of tokens are split this many ways; this is one part
    part         which of the pairs' parts; None: the busiest
    cpu          on a CPU, where the operator works in smaller chunks
    """

    samples: int = 1
    sizes: Sizes = FLOAT32
    head_parts: int = 1
    pair_parts: int = 1
    cpu: bool = False
    part: int | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of a load.

    forward           FLOPs of the forward pass, two for each multiply-add
    recomputed        FLOPs that backward adds to twice `forward`
    saved             bytes kept from forward to backward, the input included
    work              peak temporary bytes of backward, gradients of parameters excluded
    head_gradients    bytes of the gradients that pass `head_input`
    partials          bytes of the partial softmax that is merged: maxima, sums and outputs
    source_gradients  bytes of the gradient of each of the operator's sources
    importance        bytes that are merged to rank tokens by their importance: in forward, and in backward
    """

    forward: int
    recomputed: int
    saved: int
    work: int
    head_gradients: int = 0
    partials: int = 0
    source_gradients: tuple[int, ...] = ()
    importance: tuple[int, int] = (0, 0)
