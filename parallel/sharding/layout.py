"""Which part of each parameter of a net a rank holds.

A pure function of the net and the mesh: parallelize.py applies it, the planner counts with it, and
checkpoints are cut by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from models.dealing import Share, deal
from models.mixers.interface import Mixer
from models.parts.feed_forward import FeedForward
from models.transformer import GPT
from parallel.errors import UserError
from parallel.mesh import Mesh


@dataclass(frozen=True)
class Shard:
    """The part of a parameter of `full` shape that a rank holds.

    entries   of a bank sharded by offset: the entries held (dimension 0)
    dim, start, stop   the slice held of one dimension; it may reach past the end (a padded vocabulary)
    axis      the axis over which the slices are spread: "tensor" or "model"
    bank      whether dimension 0 runs over bank entries
    head_width   of a bank whose entries have heads: the entry's dimension of heads, and the width of one
    """

    full: tuple[int, ...]
    entries: tuple[int, ...] | None = None
    dim: int | None = None
    start: int = 0
    stop: int = 0
    axis: str = "tensor"
    bank: bool = False
    head_width: tuple[int, int] | None = None

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
        entries = offset_shares(mixer, mesh.offset)[mesh.offset_rank].entries
    if "head" in divided and mixer.heads % mesh.tensor:
        raise UserError(f"heads={mixer.heads} is not divisible by parallel.tensor={mesh.tensor}")
    found = {}
    for name, dims in axes.items():
        full = tuple(mixer.get_parameter(name).shape)
        bank = "entry" in dims.values()
        own = entries if bank else None
        heads = [dim for dim, axis in dims.items() if axis == "head"]
        head_width = (heads[0] - 1, full[heads[0]] // mixer.heads) if bank and heads else None
        if heads and mesh.tensor > 1:
            dim = max(heads)  # a linear layer from heads to heads is cut along its inputs
            width = full[dim] // mesh.tensor
            start = mesh.tensor_rank * width
            found[name] = Shard(full, own, dim, start, start + width, bank=bank, head_width=head_width)
        else:
            found[name] = Shard(full, own, bank=bank, head_width=head_width)
    return found


def _feed_forward_shards(held: dict[str, Shard], prefix: str, module: FeedForward, mesh: Mesh) -> None:
    hidden = module.up.out_features
    if hidden % mesh.model:
        raise UserError(f"mlp={hidden} is not divisible by offset × tensor = {mesh.model} ranks")
    width = hidden // mesh.model
    start = mesh.model_rank * width
    sharded = (("up.weight", 0), ("up.bias", 0), ("down.weight", 1))
    for name, dim in sharded if module.up.bias is not None else sharded[::2]:
        full = held[prefix + name].full
        held[prefix + name] = Shard(full, None, dim, start, start + width, "model")


def _vocabulary_shards(held: dict[str, Shard], prefix: str, module: GPT, mesh: Mesh) -> None:
    """Rows of the embedding and of the head, in equal runs; the last may reach past the vocabulary."""
    if module.config.logit_pull:
        raise UserError(
            f"model.logit_pull={module.config.logit_pull}: needs offset × tensor = 1, not {mesh.model}"
        )
    width = math.ceil(module.config.vocabulary / mesh.model)
    start = mesh.model_rank * width
    for name in ("embedding.weight", "head.weight"):
        if prefix + name in held:
            full = held[prefix + name].full
            held[prefix + name] = Shard(full, None, 0, start, start + width, "model")


def offset_shares(mixer: Mixer, ranks: int) -> list[Share]:
    """What each offset rank visits and holds; raises UserError for more ranks than there is to deal."""
    assert mixer.schedule is not None
    try:
        return deal(mixer.schedule, ranks)
    except ValueError as error:
        raise UserError(f"parallel.offset={ranks} is {error}") from None
