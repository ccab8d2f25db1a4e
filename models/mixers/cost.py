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
    """The work whose cost is asked: a batch, and which part of it is computed here.

    samples      sequences or images in the batch
    head_parts   one of so many equal parts of the heads
    pair_parts   one of so many equal parts of the pairs of tokens
    cpu          on a CPU, whose operator works in smaller portions
    """

    samples: int = 1
    sizes: Sizes = FLOAT32
    head_parts: int = 1
    pair_parts: int = 1
    cpu: bool = False


@dataclass(frozen=True)
class Cost:
    """What a mixer takes for a load.

    forward           FLOPs of the forward pass, two for each multiply-add
    recomputed        FLOPs that backward adds to twice `forward`
    saved             bytes kept from forward to backward, the input included
    work              bytes that backward takes for a moment, gradients of parameters excluded
    head_gradients    bytes of the gradients that pass `head_input`
    partials          bytes of the partial softmax that is merged: maxima, sums and outputs
    source_gradients  bytes of the gradient of each of the operator's sources
    """

    forward: int
    recomputed: int
    saved: int
    work: int
    head_gradients: int = 0
    partials: int = 0
    source_gradients: tuple[int, ...] = ()
