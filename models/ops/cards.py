"""The cards that kernels are counted for, and what each reaches.

Rates are what large matrix products and long copies reach, about 0.8 of the data sheet's dense bf16 rate
and 0.9 of its memory bandwidth. Sources: NVIDIA's data sheets "A100 Tensor Core GPU" (312 TFLOP/s,
2.04 TB/s, 80 GB), "H100 Tensor Core GPU", SXM (989 TFLOP/s, 3.35 TB/s, 80 GB), "H200 Tensor Core GPU"
(4.8 TB/s, 141 GB) and "DGX B200" (2,250 TFLOP/s, 8 TB/s, 180 GB a GPU); sizes of the second-level caches
from the architectures' white papers and, for B200, from Chips and Cheese, "Nvidia's B200". Bandwidths
of the second-level caches are in no data sheet: H100's is what microbenchmarks report, the others are
scaled from it by multiprocessors and clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from models.ops.device import stands_for
from models.ops.kernel_cost import KernelCost
from models.ops.recipe import Kernel

HOST_LAUNCH = 5e-6  # seconds that the host takes to launch a kernel from Python


@dataclass(frozen=True)
class Card:
    """A device and its rates, in FLOPs, bytes and seconds.

    capability       compute capability, major and minor
    rate             of dense bf16 products
    bandwidth        of device memory
    cache_bandwidth  of the second-level cache
    cache            bytes of the second-level cache
    memory           bytes of device memory
    launch           least time of a kernel on the device
    """

    name: str
    capability: tuple[int, int]
    rate: float
    bandwidth: float
    cache_bandwidth: float
    cache: float
    memory: float
    launch: float = 2e-6

    @property
    def peak(self) -> float:
        """FLOP/s of dense bf16 products by the data sheet."""
        return self.rate / 0.8

    def seconds(self, kernel: KernelCost) -> float:
        """Time of one launch: the longest of memory, cache, products and the launch itself."""
        memory, cache = kernel.memory_bytes / self.bandwidth, kernel.cache_bytes / self.cache_bandwidth
        return max(memory, cache, kernel.flops / self.rate, self.launch)


CARDS = {
    "a100": Card("NVIDIA A100 80GB SXM", (8, 0), 250e12, 1.83e12, 3.6e12, 40e6, 80e9),
    "h100": Card("NVIDIA H100 SXM", (9, 0), 800e12, 3.0e12, 5.5e12, 50e6, 80e9),
    "h200": Card("NVIDIA H200", (9, 0), 800e12, 4.3e12, 5.5e12, 50e6, 141e9),
    "b200": Card("NVIDIA B200", (10, 0), 1800e12, 7.2e12, 10e12, 126e6, 180e9),
}


def card_of(device: torch.device) -> Card:
    """The card that stands for a CUDA device: of the same name, else the nearest of its generation."""
    name = torch.cuda.get_device_name(device).lower()
    named = [card for key, card in CARDS.items() if key in name]
    return named[0] if named else card_for(torch.cuda.get_device_capability(device))


def card_for(capability: tuple[int, int]) -> Card:
    """The first card of the newest generation that is not newer than this compute capability."""
    older = [card for card in CARDS.values() if card.capability <= capability]
    newest = max((card.capability for card in older), default=(8, 0))
    return next(card for card in CARDS.values() if card.capability == newest)


@dataclass
class MetaCard:
    """The card that the meta device, or the CPU of a rehearsal, stands for, and the choices made there.

    chosen    the kernel of each pass over pairs, in order
    refused   the kernels that cannot serve, and why
    """

    card: Card
    chosen: list[Kernel] = field(default_factory=list)
    refused: dict[Kernel, str] = field(default_factory=dict)


_stand_ins: dict[str, list[MetaCard]] = {"meta": [], "cpu": []}


@contextmanager
def meta_is(card: Card, stand_in: str = "meta") -> Iterator[MetaCard]:
    """Chooses on the meta device as on this card, to count what a layer costs there.

    With `stand_in` "cpu", on the CPU: for fake tensors, with which no kernel runs.
    """
    cards = _stand_ins[stand_in]
    cards.append(MetaCard(card))
    try:
        with stands_for("cuda", stand_in):
            yield cards[-1]
    finally:
        cards.pop()


def card_at(device: torch.device) -> Card | None:
    """The card that a device is, or stands for inside `meta_is`; None for the CPU."""
    stand_in = stood_for(device)
    if stand_in is not None:
        return stand_in.card
    return card_of(device) if device.type == "cuda" else None


def capability_at(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device, or of the card that this device stands for; None for
    neither, (0, 0) for a card that is not NVIDIA's."""
    if device.type == "cuda":
        return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)
    stand_in = stood_for(device)
    return stand_in.card.capability if stand_in else None


def stood_for(device: torch.device) -> MetaCard | None:
    """What the device stands for inside `meta_is`."""
    cards = _stand_ins.get(device.type)
    return cards[-1] if cards else None
