"""Which part of each parameter of a net a rank holds.

A pure function of the net and the mesh: parallelize.py applies it, the planner counts with it, and
reshard.py moves checkpoints by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from models.mixers.interface import Mixer
from models.offsets import Block, OffsetGrid
from models.transformer import GPT, FeedForward
from parallel.errors import UserError
from parallel.mesh import Mesh


@dataclass(frozen=True)
class Shard:
    """The part of a parameter of `full` shape that a rank holds.

    entries   of a bank sharded by offset: the entries held (dimension 0)
    dim, start, stop   the slice held of one dimension; it may reach past the end (a padded vocabulary)
    axis      the axis over which the slices are spread: "tensor" or "model"
    """

    full: tuple[int, ...]
    entries: tuple[int, ...] | None = None
    dim: int | None = None
    start: int = 0
    stop: int = 0
    axis: str = "tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.full)
        if self.entries is not None:
            shape[0] = len(self.entries)
        if self.dim is not None:
            shape[self.dim] = self.stop - self.start
        return tuple(shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def inside(self) -> tuple[int, int]:
        """Start of the held slice, and how much of it lies within the whole."""
        assert self.dim is not None
        start, stop = (min(end, self.full[self.dim]) for end in (self.start, self.stop))
        return start, stop - start

    def sharded(self) -> bool:
        return self.entries is not None or self.dim is not None

    def counted(self, mesh: Mesh) -> bool:
        """Whether this rank counts the part in sums over the model-parallel group: of the ranks that hold
        the same part, only the first does."""
        copies_over_offset = self.entries is None and self.axis != "model"
        copies_over_tensor = self.dim is None
        return not (copies_over_offset and mesh.offset_rank) and not (copies_over_tensor and mesh.tensor_rank)

    def take(self, whole: Tensor) -> Tensor:
        """The held slice of a whole parameter (or of its held entries); zeros beyond its end."""
        if self.dim is None:
            return whole
        part = whole.narrow(self.dim, *self.inside)
        missing = self.stop - self.start - part.shape[self.dim]
        if not missing:
            return part
        padded = part.new_zeros(self.shape)
        padded.narrow(self.dim, 0, part.shape[self.dim]).copy_(part)
        return padded


def shards(model: nn.Module, mesh: Mesh) -> dict[str, Shard]:
    """The shard of each parameter of a whole net at the mesh's place; works on the meta device.

    A mixer without heads, or without bank entries, is held whole by every rank of that axis
    (`replicated_mixers` names it). Raises UserError where the net does not divide: more offset ranks than
    residue classes, heads or feed-forward width not divisible.
    """
    held = {name: Shard(tuple(p.shape)) for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Mixer):
            held |= {prefix + name: shard for name, shard in _mixer_shards(module, mesh).items()}
        if isinstance(module, FeedForward) and mesh.model > 1:
            _feed_forward_shards(held, prefix, module, mesh)
        if isinstance(module, GPT) and mesh.model > 1:
            _vocabulary_shards(held, prefix, module, mesh)
    return held


def replicated_mixers(model: nn.Module, mesh: Mesh) -> list[str]:
    """A line for each kind of mixer that several ranks of the mesh compute whole."""
    lines = []
    for mixer in (module for module in model.modules() if isinstance(module, Mixer)):
        divided, name = mixer.divided_axes(), type(mixer).__name__
        if mesh.tensor > 1 and "head" not in divided:
            lines.append(f"{name} declares no heads: each of {mesh.tensor} tensor ranks computes it whole")
        if mesh.offset > 1 and "entry" not in divided:
            lines.append(f"{name} has no bank entries: each of {mesh.offset} offset ranks computes it whole")
    return list(dict.fromkeys(lines))


def _mixer_shards(mixer: Mixer, mesh: Mesh) -> dict[str, Shard]:
    axes, divided = mixer.axes(), mixer.divided_axes()
    entries = None
    if mesh.offset > 1 and "entry" in divided:
        assert mixer.schedule is not None
        entries = offset_share(mixer.schedule.grid, mesh.offset)[mesh.offset_rank].entries
    if "head" in divided and mixer.heads % mesh.tensor:
        raise UserError(f"heads={mixer.heads} is not divisible by parallel.tensor={mesh.tensor}")
    found = {}
    for name, dims in axes.items():
        full = tuple(mixer.get_parameter(name).shape)
        own = entries if "entry" in dims.values() else None
        heads = [dim for dim, axis in dims.items() if axis == "head"]
        if heads and mesh.tensor > 1:
            dim = max(heads)  # a linear layer from heads to heads is cut along its inputs
            width = full[dim] // mesh.tensor
            start = mesh.tensor_rank * width
            found[name] = Shard(full, own, dim, start, start + width)
        else:
            found[name] = Shard(full, own)
    return found


def _feed_forward_shards(held: dict[str, Shard], prefix: str, module: FeedForward, mesh: Mesh) -> None:
    hidden = module.up.out_features
    if hidden % mesh.model:
        raise UserError(f"mlp={hidden} is not divisible by offset × tensor = {mesh.model} ranks")
    width = hidden // mesh.model
    start = mesh.model_rank * width
    for name, dim in (("up.weight", 0), ("up.bias", 0), ("down.weight", 1)):
        full = held[prefix + name].full
        held[prefix + name] = Shard(full, None, dim, start, start + width, "model")


def _vocabulary_shards(held: dict[str, Shard], prefix: str, module: GPT, mesh: Mesh) -> None:
    """Rows of the embedding and of the head, in equal runs; the last may reach past the vocabulary."""
    width = math.ceil(module.config.vocabulary / mesh.model)
    start = mesh.model_rank * width
    for name in ("embedding.weight", "head.weight"):
        if prefix + name in held:
            full = held[prefix + name].full
            held[prefix + name] = Shard(full, None, 0, start, start + width, "model")


@dataclass(frozen=True)
class OffsetShare:
    """What one offset rank streams over, and the bank entries it holds (None: all of them)."""

    classes: tuple[tuple[Block, ...], ...]
    special_blocks: tuple[Block, ...]
    entries: tuple[int, ...] | None

    @property
    def blocks(self) -> list[Block]:
        return [block for blocks in (*self.classes, self.special_blocks) for block in blocks]

    @property
    def pairs(self) -> int:
        return sum(block.pairs for block in self.blocks)


@lru_cache(maxsize=64)
def offset_share(grid: OffsetGrid, ranks: int) -> list[OffsetShare]:
    """Deals residue classes to offset ranks: pairs are equal, and then bank entries, to within one
    class; the class token's blocks go where there is least to do.

    A bank whose entries are shared between offsets is held whole by every rank. Raises UserError for
    more ranks than classes.
    """
    if ranks > len(grid.classes):
        raise UserError(
            f"parallel.offset={ranks} is more than the {len(grid.classes)} residue classes "
            f"of a grid of {grid.shape}"
        )
    dealt: list[list[tuple[Block, ...]]] = [[] for _ in range(ranks)]
    specials: list[list[Block]] = [[] for _ in range(ranks)]

    def load(rank: int) -> tuple[int, int, int]:
        blocks = [b for blocks in (*dealt[rank], specials[rank]) for b in blocks]
        return sum(b.pairs for b in blocks), len(blocks), rank

    loads = [load(rank) for rank in range(ranks)]
    for blocks in sorted(grid.classes, key=lambda blocks: (-_pairs(blocks), -len(blocks))):
        rank = min(range(ranks), key=loads.__getitem__)
        dealt[rank].append(blocks)
        loads[rank] = load(rank)
    for block in sorted(grid.special_blocks, key=lambda block: -block.pairs):
        rank = min(range(ranks), key=loads.__getitem__)
        specials[rank].append(block)
        loads[rank] = load(rank)
    whole = grid.num_entries != grid.num_offsets
    return [
        OffsetShare(tuple(classes), tuple(blocks), None if whole else _entries(classes, blocks))
        for classes, blocks in zip(dealt, specials, strict=True)
    ]


def _pairs(blocks: Sequence[Block]) -> int:
    return sum(block.pairs for block in blocks)


def _entries(classes: Sequence[Sequence[Block]], specials: Sequence[Block]) -> tuple[int, ...]:
    return tuple(sorted({block.entry for blocks in (*classes, specials) for block in blocks}))
