"""A net as the planner sees it: its parts, one layer of each kind, and how many layers are alike.

Built on the meta device with one layer of each kind, so that nets of any size take milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch

from models import ModelConfig, build_model
from models.gpt import GPTConfig
from models.transformer import Layer, MixerLayers
from parallel.mesh import Mesh
from parallel.shard import Shard, shards

PARTS = ("banks", "projections", "feed-forward", "embeddings", "head", "norms")


class LayerKind(NamedTuple):
    """One of `count` equal layers, whole and on the meta device; its parameters begin with `prefix`."""

    layer: Layer
    prefix: str
    count: int


class Piece(NamedTuple):
    """A parameter's part that one rank holds, in `count` equal layers."""

    name: str
    part: str
    shard: Shard
    count: int


class Anatomy:
    """The kinds of layers of a net, and the pieces of it that a place of a mesh holds.

    Raises ValueError for a net that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        mixers = config.layer_mixers()
        counts = Counter(mixer.model_dump_json() for mixer in mixers)
        distinct = {mixer.model_dump_json(): mixer for mixer in mixers}
        kinds = [MixerLayers(mixer=mixer, layers=1) for mixer in distinct.values()]
        small = config.model_copy(update={"mixers": kinds, "depth": len(kinds)})
        with torch.device("meta"):
            self.net = build_model(small)
        layers = cast("list[Layer]", list(self.net.get_submodule("layers").children()))
        self.kinds = [
            LayerKind(layer, f"layers.{index}.", count)
            for index, (layer, count) in enumerate(zip(layers, counts.values(), strict=True))
        ]

    @property
    def tokens(self) -> int:
        """N, with the class token."""
        if isinstance(self.config, GPTConfig):
            return self.config.tokens
        rows, columns = self.config.grid
        return rows * columns + (self.config.pool == "cls")

    def pieces(self, mesh: Mesh) -> Iterator[Piece]:
        """What the mesh's place holds; raises UserError where net and mesh do not fit."""
        for name, shard in shards(self.net, mesh).items():
            counts = [kind.count for kind in self.kinds if name.startswith(kind.prefix)]
            yield Piece(name, _part(name), shard, counts[0] if counts else 1)

    def held(self, mesh: Mesh) -> dict[str, int]:
        """The parameters that the mesh's place holds, by part; exact. Mesh() holds the whole net."""
        total = dict.fromkeys(PARTS, 0)
        for piece in self.pieces(mesh):
            total[piece.part] += piece.shard.numel * piece.count
        return total


def _part(name: str) -> str:
    if name.endswith("_bank"):
        return "banks"
    if ".mlp." in name:
        return "feed-forward"
    if ".mixer." in name:
        return "projections"
    if "norm" in name:
        return "norms"
    return "head" if name.startswith("head.") else "embeddings"
