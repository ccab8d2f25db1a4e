"""A net as the planner sees it: one layer of each kind, how often it repeats, and who holds what.

Built on the meta device with one layer of each kind, so that nets of any size take milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.mixers.cost import Cost, Load
from models.mixers.counted_pass import CountedPass, count_pass
from models.mixers.interface import Mixer
from models.ops.cards import Card
from models.parts.block import Block
from models.parts.sides import Sides
from models.stages import LayerSpec
from models.transformer import ModelConfig, build_model
from parallel.mesh import Mesh
from parallel.sharding.layout import Shard, replicated_mixers, shards

PARTS = ("banks", "projections", "feed-forward", "embeddings", "head", "norms")


class LayerKind(NamedTuple):
    """`repeats` equal layers over N `tokens`: one of them, whole and on the meta device, whose parameters
    begin with `prefix`."""

    layer: Block
    prefix: str
    repeats: int
    tokens: int

    @property
    def mixer(self) -> Mixer:
        return cast("Mixer", self.layer.mixer)


class Piece(NamedTuple):
    """A parameter's part that one rank holds, in each of `repeats` equal layers."""

    name: str
    part: str
    shard: Shard
    repeats: int


class BankEntries(NamedTuple):
    """How the banks of `layers` equal layers share entries: the rule, and the entries it leaves of so many
    offsets."""

    layers: int
    share: str
    entries: int
    offsets: int


class LayerKinds:
    """The kinds of layers of a net, and the pieces of it that a place of a mesh holds.

    kinds        one of each
    order        the kind of each layer
    not_planned  mixers and reducers whose cost is not known, and why

    Raises ValueError for a net that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.not_planned: dict[str, str] = {}
        self._pieces: dict[tuple[int, int, int], list[Piece]] = {}
        self._costs: dict[tuple[nn.Module, Load], Cost | None] = {}
        self._counted: dict[tuple[object, ...], CountedPass | None] = {}
        specs = config.layer_specs()
        counts = Counter(spec.key for spec in specs)
        distinct: dict[tuple[Any, ...], LayerSpec] = {spec.key: spec for spec in specs}
        self.net = _build_undrawn(config, list(distinct.values()))
        by_key = {
            key: LayerKind(*_block(layer, f"layers.{index}."), counts[key], spec.tokens.num_tokens)
            for index, (layer, (key, spec)) in enumerate(zip(self.net.layers, distinct.items(), strict=True))
        }
        self.kinds = list(by_key.values())
        self.order = [by_key[spec.key] for spec in specs]
        self.tokens_out = specs[-1].tokens_after.num_tokens

    @cached_property
    def no_decay(self) -> set[str]:
        """The parameters besides norms and biases that weight decay leaves alone."""
        return self.net.no_decay()

    def cost(self, module: nn.Module, load: Load) -> Cost | None:
        """The cost of a mixer, reducer or stem of this net; None where it cannot be known."""
        if (module, load) not in self._costs:
            self._costs[module, load] = self._try_cost(module, load)
        return self._costs[module, load]

    def _try_cost(self, module: Any, load: Load) -> Cost | None:
        try:
            return module.cost(load)
        except Exception as error:  # of code that we did not write
            why = " ".join(str(error).split())[:150]
            self.not_planned.setdefault(type(module).__name__, f"{type(error).__name__}: {why}")
            return None

    def bank_entries(self) -> tuple[BankEntries, ...]:
        """The share rule of each kind of layer that has banks."""
        found = []
        for kind in self.kinds:
            if "entry" in kind.mixer.divided_axes():
                assert kind.mixer.schedule is not None
                grid = kind.mixer.schedule.grid
                found.append(BankEntries(kind.repeats, grid.share, grid.num_entries, grid.num_offsets))
        return tuple(found)

    def counted(
        self, mixer: Mixer, load: Load, card: Card, dtype: torch.dtype = torch.bfloat16
    ) -> CountedPass | None:
        """A mixer's kernels for one part of a load, in `dtype`; None where it does not run on the meta
        device."""
        parts = load.samples, card, load.head_parts, load.pair_parts, dtype
        if (mixer, *parts) not in self._counted:
            try:
                self._counted[mixer, *parts] = count_pass(mixer, *parts)
            except Exception:  # of code that we did not write
                self._counted[mixer, *parts] = None
        return self._counted[mixer, *parts]

    def replicated(self, mesh: Mesh) -> list[str]:
        """A line for each kind of mixer that several ranks compute whole."""
        return replicated_mixers(self.net, mesh)

    def pieces(self, mesh: Mesh) -> list[Piece]:
        """What the mesh's place holds; raises UserError where net and mesh do not fit."""
        key = (mesh.offset, mesh.tensor, mesh.model_rank)
        if key not in self._pieces:
            self._pieces[key] = list(self._divide(mesh))
        return self._pieces[key]

    def _divide(self, mesh: Mesh) -> Iterator[Piece]:
        banks = {
            f"{kind.prefix}mixer.{name}"
            for kind in self.kinds
            for name, dims in kind.mixer.axes().items()
            if "entry" in dims.values()
        }
        for name, shard in shards(self.net, mesh).items():
            counts = [kind.repeats for kind in self.kinds if name.startswith(kind.prefix)]
            part = "banks" if name in banks else _part(name)
            yield Piece(name, part, shard, counts[0] if counts else 1)

    def held(self, mesh: Mesh) -> dict[str, int]:
        """The parameters that the mesh's place holds, by part; exact. Mesh() holds the whole net."""
        total: dict[str, int] = dict.fromkeys(PARTS, 0)
        for piece in self.pieces(mesh):
            total[piece.part] += piece.shard.numel * piece.repeats
        return total


def _block(layer: nn.Module, prefix: str) -> tuple[Block, str]:
    """A layer, and the prefix of its parameters; one of the latents alone lies inside `Sides`."""
    if isinstance(layer, Sides):
        layer, prefix = layer.latents, f"{prefix}latents."
    assert isinstance(layer, Block)
    return layer, prefix


def mixer_load(mixer: Mixer, mesh: Mesh, load: Load) -> Load:
    """`load` with the parts of heads and pairs that a rank of the mesh computes."""
    divided = mixer.divided_axes()
    return Load(
        load.samples,
        load.sizes,
        mesh.tensor if "head" in divided else 1,
        mesh.offset if "entry" in divided else 1,
        load.cpu,
        load.part if "entry" in divided else None,
    )


def _part(name: str) -> str:
    if ".mlp." in name:
        return "feed-forward"
    if ".mixer." in name or ".reduce." in name or ".local." in name:
        return "projections"
    if "norm" in name or "_scale." in name:
        return "norms"
    return "head" if name.startswith("head.") else "embeddings"


def _build_undrawn(config: ModelConfig, specs: list[LayerSpec]) -> Any:
    """The net on the meta device in milliseconds: drawing weights there would load torch's compiler."""
    with torch.device("meta"), _Undrawn():
        return build_model(config, specs)


_DRAWS = frozenset(
    (
        *(getattr(nn.init, name) for name in ("normal_", "uniform_", "kaiming_uniform_")),
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
    )
)


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **(kwargs or {}))
