"""A net as the planner sees it: its parts, one layer of each kind, and how many layers are alike.

Built on the meta device with one layer of each kind, so that nets of any size take milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, cast

from torch import nn

from models import ModelConfig
from models.gpt import GPTConfig
from models.mixers.attention import Attention
from models.mixers.translution import Translution
from models.transformer import Layer, MixerLayers
from parallel.mesh import Mesh
from parallel.planner.outline import outline
from parallel.sharding.layout import Shard, shards

PARTS = ("banks", "projections", "feed-forward", "embeddings", "head", "norms")


class LayerKind(NamedTuple):
    """One of `count` equal layers, whole and on the meta device; its parameters begin with `prefix`."""

    layer: Layer
    prefix: str
    count: int


class MixerShape(NamedTuple):
    """The widths of a mixer on one rank.

    width, inner   C, and D of all heads
    heads, values  of this rank: heads, and the summed widths of the value segments
    sources        widths C_s of the operator's sources; of attention: q, k and v
    narrow         the summed widths of α-Translution's narrow sources
    lifts          whether an α-Translution's values are brought back to the inner width
    """

    width: int
    inner: int
    heads: int
    values: int
    sources: tuple[int, ...]
    narrow: int = 0
    lifts: bool = False


def mixer_shape(mixer: nn.Module, mesh: Mesh) -> MixerShape:
    """Of a whole mixer's part on one rank of the tensor axis."""
    assert isinstance(mixer, Translution | Attention)
    width, inner, heads = mixer.out.out_features, mixer.out.in_features, mixer.heads // mesh.tensor
    own = inner // mesh.tensor
    if isinstance(mixer, Attention):
        return MixerShape(width, inner, heads, own, (own, own, own))
    shared = [own for name in "qkv" if hasattr(mixer, name)]
    if mixer.rank is None:
        return MixerShape(width, inner, heads, own, (width, *shared))
    narrow = [mixer.heads * mixer.rank for name in "qkv" if hasattr(mixer, f"{name}_down")]
    lifts = hasattr(mixer, "v_up")
    values = own + lifts * heads * mixer.rank
    return MixerShape(width, inner, heads, values, (*shared, *narrow), sum(narrow), lifts)


class Piece(NamedTuple):
    """A parameter's part that one rank holds, in `count` equal layers."""

    name: str
    part: str
    shard: Shard
    count: int


class Anatomy:
    """The kinds of layers of a net, and the pieces of it that a place of a mesh holds; `order` is the
    kind of each layer.

    Raises ValueError for a net that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._pieces: dict[tuple[int, int, int], list[Piece]] = {}
        mixers = config.layer_mixers()
        counts = Counter[str](mixer.model_dump_json() for mixer in mixers)
        distinct = {mixer.model_dump_json(): mixer for mixer in mixers}
        kinds = [MixerLayers(mixer=mixer, layers=1) for mixer in distinct.values()]
        small = config.model_copy(update={"mixers": kinds, "depth": len(kinds)})
        self.net = outline(small)
        layers = cast("list[Layer]", list(self.net.get_submodule("layers").children()))
        self.kinds = [
            LayerKind(layer, f"layers.{index}.", count)
            for index, (layer, count) in enumerate(zip(layers, counts.values(), strict=True))
        ]
        by_mixer = dict(zip(distinct, self.kinds, strict=True))
        self.order = [by_mixer[mixer.model_dump_json()] for mixer in mixers]

    @property
    def tokens(self) -> int:
        """N, with the class token."""
        if isinstance(self.config, GPTConfig):
            return self.config.tokens
        rows, columns = self.config.grid
        return rows * columns + (self.config.pool == "cls")

    def pieces(self, mesh: Mesh) -> list[Piece]:
        """What the mesh's place holds; raises UserError where net and mesh do not fit."""
        key = (mesh.offset, mesh.tensor, mesh.model_rank)
        if key not in self._pieces:
            self._pieces[key] = list(self._divide(mesh))
        return self._pieces[key]

    def _divide(self, mesh: Mesh) -> Iterator[Piece]:
        for name, shard in shards(self.net, mesh).items():
            counts = [kind.count for kind in self.kinds if name.startswith(kind.prefix)]
            yield Piece(name, _part(name), shard, counts[0] if counts else 1)

    def held(self, mesh: Mesh) -> dict[str, int]:
        """The parameters that the mesh's place holds, by part; exact. Mesh() holds the whole net."""
        total: dict[str, int] = dict.fromkeys(PARTS, 0)
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
