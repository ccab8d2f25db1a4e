"""`translution bench kernels`: what a layer costs on a card, counted on the meta device.

One layer, projections included, forward and backward: activations bfloat16, banks float32. A kernel's time
is the longest of its bytes over the memory's and the cache's bandwidth, its FLOPs over the products' rate
and the least time of a launch (models/ops/cards.py); a layer's time is the sum. Nothing is measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from launch.bench.kernels.before import before
from models.mixers.attention import Attention
from models.mixers.cost import Load
from models.mixers.counted_pass import CountedPass, count_pass
from models.mixers.interface import Mixer
from models.mixers.translution import Translution
from models.ops.cards import CARDS, HOST_LAUNCH, Card
from models.ops.recipe import Kernel, workspace_bytes
from models.tokens import TokenGrid
from parallel.errors import UserError

HEAD_DIM = 64
RANK = 8
GRIDS = {
    "14x14+cls": TokenGrid((14, 14), class_token=True),
    "28x28+cls": TokenGrid((28, 28), class_token=True),
    "8192 causal": TokenGrid((8192,), causal=True),
    "1024 causal": TokenGrid((1024,), causal=True),
    "7x7": TokenGrid((7, 7)),
}
MIXERS = {"full": None, "alpha-8": RANK}


class Size(NamedTuple):
    """A layer's tokens, width and batch, and which offsets share entries."""

    shape: str
    c: int
    batch: int
    share: str = "none"

    def __str__(self) -> str:
        shared = "" if self.share == "none" else f" {self.share}"
        return f"{self.shape}{shared}, C={self.c}, B={self.batch}"

    def mixer(self, name: str, kernel: Kernel = "auto") -> Mixer:
        """The layer, on the meta device."""
        tokens, heads = GRIDS[self.shape], self.c // HEAD_DIM
        with torch.device("meta"):
            if name == "attention":
                return Attention(self.c, tokens, heads, HEAD_DIM)
            rank = MIXERS[name]
            return Translution(self.c, tokens.offsets(self.share), heads, HEAD_DIM, rank=rank, kernel=kernel)


SIZES = [
    *(Size("14x14+cls", c, batch) for c in (192, 384, 768) for batch in (32, 128, 256)),
    Size("1024 causal", 768, 8),
    Size("7x7", 192, 256),
]
SHARED = [
    Size("1024 causal", 768, 8, "log"),
    Size("14x14+cls", 768, 32, "log"),
    Size("1024 causal", 768, 8, "clip(3)"),
    Size("8192 causal", 768, 1, "log"),
    Size("14x14+cls", 768, 128, "clip(2)"),
    Size("28x28+cls", 768, 8, "log"),
]


def layers() -> list[tuple[str, Size]]:
    """The mixer and size of each row."""
    return [*((name, size) for name in MIXERS for size in SIZES), *(("full", size) for size in SHARED)] + [
        ("alpha-8", size) for size in SHARED[:2]
    ]


def bench_kernels(card_name: str) -> dict[str, Any]:
    """Counts every size for one card; raises UserError for a card that is not known."""
    if card_name not in CARDS:
        raise UserError(f"--card {card_name}: one of {', '.join(CARDS)} is needed")
    card = CARDS[card_name]
    not_counted: dict[str, str] = {}
    rows = []
    for name, size in layers():
        row, refused = count_row(size, name, card_name)
        rows.append(row)
        shared = "" if size.share == "none" else " shared"
        not_counted |= {f"{name}{shared}, {kernel}": reason for kernel, reason in refused.items()}
    return {
        "card": card.name,
        "how": "counted, not measured",
        "rate": card.rate,
        "bandwidth": card.bandwidth,
        "cache_bandwidth": card.cache_bandwidth,
        "launch_seconds": card.launch,
        "host_launch_seconds": HOST_LAUNCH,
        "not_counted": not_counted,
        "rows": rows,
    }


def count_row(size: Size, name: str, card_name: str) -> tuple[dict[str, Any], dict[Kernel, str]]:
    """One layer on one card, by the kernels that serve it there, and why others do not."""
    card, mixer = CARDS[card_name], size.mixer(name)
    counted = count_pass(mixer, size.batch, card)
    useful = 3 * mixer.cost(Load(size.batch)).forward
    row: dict[str, Any] = {
        "shape": size.shape,
        "share": size.share,
        "mixer": name,
        "c": size.c,
        "batch": size.batch,
        "kernel": counted.kernels[0],
        **_launches(counted),
        "flops_useful": useful,
        "flops_done": counted.forward.flops + counted.backward.flops,
        "milliseconds_forward": 1e3 * counted.forward.seconds,
        "milliseconds": 1e3 * counted.seconds,
        "floor_milliseconds": 1e3 * useful / card.rate,
        "fraction": useful / card.rate / counted.seconds,
        "launch_share": HOST_LAUNCH * _kernels(counted) / counted.seconds,
        **_peak(counted.extra_bytes, size.batch * mixer.num_tokens * size.c * 2),
        "before": _before(size, name, card_name, useful / card.rate),
    }
    if name != "full" or size.share != "none":
        row |= _beside_attention(size, card, counted.seconds, useful)
    return row, counted.refused


def _launches(counted: CountedPass) -> dict[str, int]:
    return {
        "kernels_forward": counted.forward.kernels,
        "kernels_backward": counted.backward.kernels,
        "bytes": counted.forward.memory_bytes + counted.backward.memory_bytes,
    }


def _peak(extra: int, x: int) -> dict[str, float]:
    """Peak memory beside x, the output, parameters and gradients, and what of it is above a whole workspace,
    both also in sizes of x."""
    workspace = workspace_bytes(None, "cuda")
    return {
        "peak_extra_bytes": extra,
        "extra_in_x": extra / x,
        "workspace_bytes": workspace,
        "extra_in_x_above_workspace": max(0, extra - workspace) / x,
    }


def _kernels(counted: CountedPass) -> int:
    return counted.forward.kernels + counted.backward.kernels


def _before(size: Size, name: str, card_name: str, floor: float) -> dict[str, Any] | None:
    """The same count of the code as it was before there were kernels of its own."""
    shape = size.shape if size.share == "none" else f"{size.shape} {size.share}"
    then = before(shape, name, size.c, size.batch, card_name)
    if then is None:
        return None
    milliseconds = then.milliseconds[card_name]
    return {
        "kernels_forward": then.kernels_forward,
        "kernels_backward": then.kernels_backward,
        "bytes": then.bytes,
        "milliseconds": milliseconds,
        "fraction": 1e3 * floor / milliseconds,
    }


def _beside_attention(size: Size, card: Card, seconds: float, useful: int) -> dict[str, float]:
    """A layer against self-attention of the same width: time, and what their FLOPs say."""
    attention = size.mixer("attention")
    counted = count_pass(attention, size.batch, card)
    return {
        "attention_milliseconds": 1e3 * counted.seconds,
        "times_attention": seconds / counted.seconds,
        "times_attention_flops": useful / (3 * attention.cost(Load(size.batch)).forward),
    }
